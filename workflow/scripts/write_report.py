from po_dynamics.stage import stage
