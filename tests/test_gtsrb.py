from nbsupport import gtsrb, paper


def test_the_table_of_counts_is_the_papers():
    assert [sum(gtsrb.COUNTS[s]) for s in gtsrb.SPLITS] == [34799, 4440, 12630]
    assert [gtsrb.COUNTS[s][2] for s in gtsrb.SPLITS] == [2010, 240, 750]
    assert [gtsrb.COUNTS[s][5] for s in gtsrb.SPLITS] == [1650, 210, 630]
    assert {len(c) for c in gtsrb.COUNTS.values()} == {43}
    assert len(set(gtsrb.CLASS_NAMES)) == 43
    assert gtsrb.COUNTS["train"][5] == paper.N_CLASS
