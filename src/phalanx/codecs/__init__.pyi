# SPDX-License-Identifier: Apache-2.0
from phalanx.codecs.atomo.atomo import Atomo as atomo
from phalanx.codecs.atomo.atoms import Atoms as Atoms
from phalanx.codecs.atomo.dictionary import Dictionary as Dictionary
from phalanx.codecs.atomo.dictionary import Entries as entries
from phalanx.codecs.atomo.fourier import Dct as dct
from phalanx.codecs.atomo.fourier import Fourier as fourier
from phalanx.codecs.atomo.probabilities import atomo_probabilities as atomo_probabilities
from phalanx.codecs.atomo.spectral import Spectral as spectral
from phalanx.codecs.chunked_dct import ChunkedDct as chunked_dct
from phalanx.codecs.dense import Dense as dense
from phalanx.codecs.error_feedback import ErrorFeedback as error_feedback
from phalanx.codecs.half import Half as half
from phalanx.codecs.lq import Lq as lq
from phalanx.codecs.qsgd import Qsgd as qsgd
from phalanx.codecs.random_k import RandomK as random_k
from phalanx.codecs.sign import Sign as sign
from phalanx.codecs.signum import signum as signum
from phalanx.codecs.stochastic_binary import StochasticBinary as stochastic_binary
from phalanx.codecs.terngrad import Terngrad as terngrad
from phalanx.codecs.top_k import TopK as top_k

__all__ = [
    "Atoms",
    "Dictionary",
    "atomo",
    "atomo_probabilities",
    "chunked_dct",
    "dct",
    "dense",
    "entries",
    "error_feedback",
    "fourier",
    "half",
    "lq",
    "qsgd",
    "random_k",
    "sign",
    "signum",
    "spectral",
    "stochastic_binary",
    "terngrad",
    "top_k",
]
