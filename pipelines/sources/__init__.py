"""Where images come from: one file for each kind of image set. `open` opens what a user writes after --data."""

from saccade.pipelines.sources.account import Account as Account
from saccade.pipelines.sources.arrays import ArraySource as ArraySource
from saccade.pipelines.sources.decode import BadImage as BadImage
from saccade.pipelines.sources.decode import decode as decode
from saccade.pipelines.sources.decode import image_size as image_size
from saccade.pipelines.sources.folder import FolderSource as FolderSource
from saccade.pipelines.sources.index import Index as Index
from saccade.pipelines.sources.options import Options as Options
from saccade.pipelines.sources.source import Reader as Reader
from saccade.pipelines.sources.source import Source as Source
