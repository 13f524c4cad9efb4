"""The drawings in static/ are what docs/pictures.py makes of the library as it is, and a phone shows them readably."""

import re
import xml.etree.ElementTree as ET

import pytest
from test_rooms import ORDER, imported, room_of

from load_scripts import load_script
from small import ROOT

pictures = load_script("docs/pictures.py")
PHONE = 358  # pixels of a page 390 wide, less its margins


def test_the_methods_drawing_is_up_to_date():
    """Else: python docs/pictures.py"""
    assert (ROOT / "static/method.svg").read_text(encoding="utf-8") == pictures.method()


@pytest.mark.parametrize("name", pictures.DRAWINGS)
def test_a_drawing_is_readable_on_a_phone_and_loads_nothing(name):
    text = (ROOT / "static" / name).read_text(encoding="utf-8")
    root = ET.fromstring(text)
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    sizes = [float(size) for size in re.findall(r"(?:font-size: |font: (?:italic )?)([\d.]+)px", text)]
    assert min(sizes) * PHONE / width >= 12 and height < 2 * width
    assert "href" not in text and "url(" not in text.replace("url(#tip", "") and "@import" not in text
    assert "prefers-color-scheme: dark" in text and root.find("{http://www.w3.org/2000/svg}title").text


def test_the_house_has_every_room_and_the_imports_that_are_there():
    """How thick an arc is was true when it was drawn; that it is there is true now."""
    assert pictures.rooms() == ORDER and set(pictures.ABOUT) == set(ORDER)
    found = pictures.imports_between(ORDER)
    expected = set()
    for path in pictures.LIBRARY.rglob("*.py"):
        here = path.relative_to(pictures.LIBRARY).with_suffix("").parts
        for name in imported(path):
            package, *below = name.split(".")
            if package == "lm_human_preferences" and below and here != ("__init__",):
                expected.add((room_of(here), room_of(tuple(below))))
    expected = {(room, other) for room, other in expected if room != other}
    assert set(found) == expected
    drawn = re.findall(r'class="arc" id="(\w+)-(\w+)"', (ROOT / "static/house.svg").read_text(encoding="utf-8"))
    assert set(drawn) == expected, "python docs/pictures.py"
