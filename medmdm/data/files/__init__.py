"""Reading and writing the files that a lab has: pictures, volumes, DICOM."""
