"""How a training run (`run`) is executed: by Ray Train (`on_ray`, `worker`) or in this process (`in_process`)."""
