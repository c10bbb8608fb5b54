from __future__ import annotations

from medmdm.reports.summary import Pseudonyms


def test_numbers_in_the_order_of_the_cases() -> None:
    names = Pseudonyms(["b", "a", None, "b"])
    assert [names.name(p) for p in ("b", "a", None)] == ["P1", "P2", None]
    assert Pseudonyms([f"patient{i}" for i in range(10)]).name("patient0") == "P01"


def test_ids_are_taken_out_of_text_as_words_only() -> None:
    names = Pseudonyms(["TCGA-18-5592", "1234", "7", "TCGA-18"])
    assert names.clean("TCGA-18-5592-01Z of TCGA-18") == "P1-01Z of P4"
    assert names.clean("image_1234.png, image_12345.png, x1234") == "image_P2.png, image_12345.png, x1234"
    assert names.clean("train_7") == "train_7"  # too short to be told from any other 7


def test_content_is_cleaned_in_keys_and_values_and_under_keys_of_patients() -> None:
    names = Pseudonyms(["7", "ANNA-1"])
    content = {"ANNA-1": ["x ANNA-1", 3, None], "training_patients": ["7", "8"], "patient_id": "9", "patients": 12}
    assert names.clean_all(content) == {
        "P2": ["x P2", 3, None],
        "training_patients": ["P1", "(hidden)"],
        "patient_id": "(hidden)",
        "patients": 12,
    }
    assert names.clean_all(names.clean_all(content)) == names.clean_all(content)


def test_kept_on_request() -> None:
    names = Pseudonyms(["ANNA-1"], keep=True)
    assert names.name("ANNA-1") == "ANNA-1"
    assert names.clean_all({"patient_id": "ANNA-1 x"}) == {"patient_id": "ANNA-1 x"}
