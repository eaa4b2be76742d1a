"""Sampling with vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from po_dynamics.errors import InputError
from po_dynamics.models.sampling import Response, Sampling, check


class VLLMRollout:
    """vLLM, which samples by its own seeded law: same protocol, different random numbers.

    The policy reaches the engine through a folder (`save`), written before every call.
    """

    def __init__(self, save: Callable[[Path], None], sampling: Sampling, gpu_memory: float = 0.3) -> None:
        try:
            import vllm
        except ImportError:
            raise InputError(
                "rollout: vllm is not installed: `pip install vllm` (CUDA), or use rollout: cached"
            ) from None
        self.vllm, self.save, self.sampling, self.gpu_memory = vllm, save, sampling, gpu_memory

    def __call__(self, prompts: Sequence[Sequence[int]], uniforms_BR: Tensor) -> list[Response]:
        check(prompts, self.sampling, None)
        parameters = [
            self.vllm.SamplingParams(
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                max_tokens=self.sampling.max_new_tokens,
                stop_token_ids=list(self.sampling.eos_ids),
                seed=int(row[0] * 2**31),
                logprobs=0,
                detokenize=False,
            )
            for row in uniforms_BR
        ]
        with TemporaryDirectory() as folder:
            self.save(Path(folder))
            engine = self.vllm.LLM(
                folder,
                gpu_memory_utilization=self.gpu_memory,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",
            )
            outputs = engine.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], parameters)
        return [self._response(output.outputs[0]) for output in outputs]

    def _response(self, completion: object) -> Response:
        ids = list(completion.token_ids)  # type: ignore[attr-defined]
        logps = [entry[token].logprob for token, entry in zip(ids, completion.logprobs, strict=True)]  # type: ignore[attr-defined]
        return Response(ids, bool(ids) and ids[-1] in self.sampling.eos_ids, logps, None)
