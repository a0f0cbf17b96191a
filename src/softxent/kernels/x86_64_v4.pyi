from softxent.kernels.baseline import loss_and_grad, max_threads, openmp, team_size

__all__ = ["loss_and_grad", "max_threads", "openmp", "team_size"]
