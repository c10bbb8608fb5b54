"""What was segmented, written so that other programs open it."""

from medmdm.segment.formats.coco import COCO
from medmdm.segment.formats.dicom_seg import DicomSeg
from medmdm.segment.formats.geojson import GeoJSON
from medmdm.segment.formats.ome_tiff import OMETiff
from medmdm.segment.formats.tables import ObjectTable

__all__ = ["COCO", "DicomSeg", "GeoJSON", "OMETiff", "ObjectTable"]
