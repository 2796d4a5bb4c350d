# SPDX-License-Identifier: Apache-2.0
from phalanx.data.augment import Augment as Augment
from phalanx.data.augment import CropFlip as crop_flip
from phalanx.data.augment import ResizedCropFlip as resized_crop_flip
from phalanx.data.cifar import Cifar10 as cifar10
from phalanx.data.cifar import Cifar100 as cifar100
from phalanx.data.dataset import Data as Data
from phalanx.data.dataset import Dataset as Dataset
from phalanx.data.dataset import locations as locations
from phalanx.data.digits import Digits as digits
from phalanx.data.examples import Examples as Examples
from phalanx.data.files import MissingData as MissingData
from phalanx.data.grayscale import Grayscale as grayscale
from phalanx.data.image_folder import ImageFolder as image_folder
from phalanx.data.images import Images as Images
from phalanx.data.mnist import Mnist as mnist
from phalanx.data.movie_review import MovieReview as movie_review
from phalanx.data.multi30k import Multi30k as multi30k
from phalanx.data.node_config import node_config as node_config
from phalanx.data.own import ClientDatasets as client_datasets
from phalanx.data.own import Datasets as datasets
from phalanx.data.partial_partition import ByOwner as by_owner
from phalanx.data.partial_partition import Nested as nested
from phalanx.data.partial_partition import Reserve as reserve
from phalanx.data.partition import ByClient as by_client
from phalanx.data.partition import Dirichlet as dirichlet
from phalanx.data.partition import Iid as iid
from phalanx.data.partition import Partition as Partition
from phalanx.data.partition import Shards as shards
from phalanx.data.shakespeare import Shakespeare as shakespeare
from phalanx.data.shape import Pairs as Pairs
from phalanx.data.shape import Passage as Passage
from phalanx.data.shape import Tokens as Tokens
from phalanx.data.wikitext2 import Wikitext2 as wikitext2

__all__ = [
    "Augment",
    "Data",
    "Dataset",
    "Examples",
    "Images",
    "MissingData",
    "Pairs",
    "Partition",
    "Passage",
    "Tokens",
    "by_client",
    "by_owner",
    "cifar10",
    "cifar100",
    "client_datasets",
    "crop_flip",
    "datasets",
    "digits",
    "dirichlet",
    "grayscale",
    "iid",
    "image_folder",
    "locations",
    "mnist",
    "movie_review",
    "multi30k",
    "nested",
    "node_config",
    "reserve",
    "resized_crop_flip",
    "shakespeare",
    "shards",
    "wikitext2",
]
