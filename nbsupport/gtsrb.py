"""What is known of GTSRB before it is read: classes, counts, folders and official archives."""

__all__ = [
    "ARCHIVES",
    "CLASS_NAMES",
    "COUNTS",
    "EXPECTED",
    "FOLDERS",
    "FRAMES",
    "SIDE",
    "SPLITS",
    "URL",
]

SPLITS = ("train", "validation", "test")
FRAMES = 30
"""Frames of one physical sign: a track."""

CLASS_NAMES = (
    "speed limit 20 km/h",
    "speed limit 30 km/h",
    "speed limit 50 km/h",
    "speed limit 60 km/h",
    "speed limit 70 km/h",
    "speed limit 80 km/h",
    "end of speed limit 80 km/h",
    "speed limit 100 km/h",
    "speed limit 120 km/h",
    "no overtaking",
    "no overtaking for lorries",
    "right of way at the next crossing",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no lorries",
    "no entry",
    "danger",
    "curve to the left",
    "curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "roadworks",
    "traffic signals",
    "pedestrians",
    "children",
    "bicycles",
    "snow or ice",
    "wild animals",
    "end of all limits",
    "turn right",
    "turn left",
    "ahead only",
    "ahead or right",
    "ahead or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking for lorries",
)
"""English names of the 43 classes, in GTSRB's order."""

# fmt: off
COUNTS = {
    "train": (
        180, 1980, 2010, 1260, 1770, 1650, 360, 1290, 1260, 1320, 1800, 1170, 1890, 1920, 690,
        540, 360, 990, 1080, 180, 300, 270, 330, 450, 240, 1350, 540, 210, 480, 240, 390, 690,
        210, 599, 360, 1080, 330, 180, 1860, 270, 300, 210, 210,
    ),
    "validation": (
        60, 240, 240, 150, 210, 210, 60, 150, 150, 150, 210, 150, 210, 240, 90, 90, 60, 120, 120,
        30, 60, 60, 60, 60, 30, 150, 60, 30, 60, 30, 60, 90, 30, 90, 60, 120, 60, 30, 210, 30, 60,
        30, 30,
    ),
    "test": (
        60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270, 210, 150, 360,
        390, 60, 90, 90, 120, 150, 90, 480, 180, 60, 150, 90, 150, 270, 60, 210, 120, 390, 120,
        60, 690, 90, 90, 60, 90,
    ),
}
"""Images per class in the paper's split of GTSRB (34,799 / 4,440 / 12,630), counted on disk."""
# fmt: on

SIDE = 32
"""Pixels of an image's side, here and in the paper."""
FOLDERS = {"Training": "train", "Validation": "validation", "Testing": "test"}
EXPECTED = {
    "paper": {folder: COUNTS[split] for folder, split in FOLDERS.items()},
    # The official training set is train + validation without the 30 copies in class 0.
    "official": {
        "Final_Training": tuple(
            a + b - (30 if c == 0 else 0)
            for c, (a, b) in enumerate(zip(COUNTS["train"], COUNTS["validation"], strict=True))
        ),
        "Final_Test": COUNTS["test"],
    },
}
"""Images per class of each folder of the two layouts."""

URL = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
ARCHIVES = {
    "GTSRB_Final_Training_Images.zip": "f33fd80ac59bff73c82d25ab499e03a3",
    "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
    "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
}
"""Official archives and their md5 (the last two also stand in torchvision.datasets.GTSRB)."""
