"""Recurrent layers with orthogonal kernels."""

from .conv_lstm import ConvLSTM
from .conv_neru import ConvNERU
from .orthogonal_rnn import OrthogonalRNN

__all__ = ["ConvLSTM", "ConvNERU", "OrthogonalRNN"]
