# SPDX-License-Identifier: Apache-2.0
from phalanx.models.alexnet import Alexnet as alexnet
from phalanx.models.char_lstm import CharLstm as char_lstm
from phalanx.models.cnn import Cnn as cnn
from phalanx.models.cnn_rand import CnnRand as cnn_rand
from phalanx.models.custom import Custom as custom
from phalanx.models.lenet import Lenet as lenet
from phalanx.models.lstm import TiedLstm as tied_lstm
from phalanx.models.mlp import Fc as fc
from phalanx.models.mlp import Mlp as mlp
from phalanx.models.model import Model as Model
from phalanx.models.resnet import Resnet as resnet
from phalanx.models.resnet import Resnet18 as resnet18
from phalanx.models.resnet import Resnet50 as resnet50
from phalanx.models.resnet import Resnet152 as resnet152
from phalanx.models.resnet import WideResnet50 as wide_resnet50
from phalanx.models.sentence_lstm import SentenceLstm as sentence_lstm
from phalanx.models.transformer import Transformer as transformer
from phalanx.models.vgg import Vgg9 as vgg9
from phalanx.models.vgg import Vgg9Conv as vgg9_conv
from phalanx.models.vgg import Vgg11 as vgg11
from phalanx.models.vgg import Vgg11Bn as vgg11_bn
from phalanx.models.vgg import Vgg13Bn as vgg13_bn
from phalanx.models.vgg import Vgg19Bn as vgg19_bn

__all__ = [
    "Model",
    "alexnet",
    "char_lstm",
    "cnn",
    "cnn_rand",
    "custom",
    "fc",
    "lenet",
    "mlp",
    "resnet",
    "resnet18",
    "resnet50",
    "resnet152",
    "sentence_lstm",
    "tied_lstm",
    "transformer",
    "vgg9",
    "vgg9_conv",
    "vgg11",
    "vgg11_bn",
    "vgg13_bn",
    "vgg19_bn",
    "wide_resnet50",
]
