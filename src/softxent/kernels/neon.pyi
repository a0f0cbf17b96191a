# The kernels for NEON of AArch64: the functions of the baseline.
from softxent.kernels.baseline import exp_of as exp_of
from softxent.kernels.baseline import log1p_of as log1p_of
from softxent.kernels.baseline import loss_and_grad as loss_and_grad
from softxent.kernels.baseline import may_overlap_itself as may_overlap_itself
from softxent.kernels.baseline import openmp as openmp
from softxent.kernels.baseline import team_size as team_size
from softxent.kernels.baseline import thread_limit as thread_limit
