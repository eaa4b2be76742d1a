"""A reward function for tests: the number of words."""


def words(prompts: list, responses: list[str]) -> list[float]:
    return [float(len(response.split())) for response in responses]
