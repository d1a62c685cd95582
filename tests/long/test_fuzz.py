"""The service under damaged photos, for some minutes."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from service_helpers import FORMATS, WHOLE

from service import app

KINDS = st.sampled_from(["set", "cut", "insert", "end"])


def damage(data, changes):
    """Change, cut out or insert bytes of a file, or end it early."""
    for what, where, new in changes:
        start = int(where * len(data))
        end = {"insert": start, "end": len(data)}.get(what, start + len(new))
        data = data[:start] + (b"" if what == "cut" else new) + data[end:]
    return data


@settings(max_examples=1500, deadline=None, database=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(KINDS, st.floats(0, 1), st.binary(min_size=1, max_size=64)), min_size=1, max_size=6),
)
def test_damaged_photos_never_break_it(form, changes):
    data = damage(WHOLE[form], changes)
    response = app.app.test_client().post("/detect", data={"image": (io.BytesIO(data), "photo.png")})
    assert response.status_code in (200, 400, 413)
    assert set(response.json) == {"error"} or response.json["class"] in ("Ship", "Truck", None)
