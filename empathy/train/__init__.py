"""Training and scoring as plain processes: SFT, DPO and log-probabilities with TRL, PEFT and DeepSpeed. Knows no Ray.

`placement`, `check` and `launch` import nothing heavy; everything else here does, and is imported by the processes
that train.
"""
