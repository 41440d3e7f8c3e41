//! Shards written, read back, and broken in every way that a disk can break them.

use super::*;

fn origin() -> ShardOrigin {
    ShardOrigin {
        tokenizer: Digest::of(b"tokenizer"),
        template: Digest::of(b"template"),
        max_tokens: 8,
    }
}

const ROWS: [(&[u32], &[u8]); 3] = [
    (&[5, 6, 7], &[0, 0, 1]),
    (&[99], &[0]),
    (&[1, 2, 3, 4, 5, 6, 7, 8], &[0, 1, 1, 0, 0, 1, 1, 1]),
];

fn write(path: &Path) -> ShardFacts {
    let mut writer = ShardWriter::create(path).unwrap();
    for (ids, loss) in ROWS {
        writer.push(ids, loss).unwrap();
    }
    writer.finish(origin()).unwrap()
}

fn read(shard: &Shard) -> Vec<(Vec<u32>, Vec<u8>)> {
    (0..shard.rows())
        .map(|i| (shard.row(i).ids.to_vec(), shard.row(i).loss.to_vec()))
        .collect()
}

#[test]
fn rows_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.shard");
    let facts = write(&path);
    let shard = Shard::open(&path).unwrap();
    let mut last = (0, 0);
    shard.verify(|done, total| last = (done, total)).unwrap();
    assert_eq!(last.0, last.1);
    assert_eq!(shard.facts(), &facts);
    assert_eq!(
        (shard.rows(), shard.tokens(), shard.loss_tokens()),
        (3, 12, 6)
    );
    assert_eq!(
        read(&shard),
        ROWS.map(|(ids, loss)| (ids.to_vec(), loss.to_vec()))
    );
    assert_eq!(facts.ids_below, 100);
    assert!(Shard::is_shard(&path));
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no parts are left"
    );
}

#[test]
fn memory_and_file_are_the_same_shard() {
    let dir = tempfile::tempdir().unwrap();
    let facts = write(&dir.path().join("a"));
    let mut builder = ShardBuilder::new();
    for (ids, loss) in ROWS {
        builder.push(ids, loss).unwrap();
    }
    let shard = builder.finish(origin());
    assert_eq!(shard.facts(), &facts);
    assert_eq!(read(&shard).len(), 3);
    shard.verify(|_, _| ()).unwrap();
}

#[test]
fn empty_shard_is_a_shard() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty");
    ShardWriter::create(&path)
        .unwrap()
        .finish(origin())
        .unwrap();
    assert_eq!(Shard::open(&path).unwrap().rows(), 0);
    assert_eq!(ShardBuilder::new().finish(origin()).rows(), 0);
}

#[test]
fn impossible_rows_are_refused() {
    let mut builder = ShardBuilder::new();
    for (ids, loss) in [(&[][..], &[][..]), (&[1], &[]), (&[1], &[2])] {
        assert!(matches!(builder.push(ids, loss), Err(ShardError::Row(_))));
    }
}

const PAIRS: [[&[u32]; 2]; 3] = [
    [&[1, 2, 3], &[1, 2, 4, 5]],
    [&[7, 8], &[7, 9]],
    [&[10, 11, 12, 13], &[10, 11]],
];

/// Labels on everything after the first token.
fn labels(ids: &[u32]) -> Vec<u8> {
    (0..ids.len()).map(|i| u8::from(i > 0)).collect()
}

fn push_pairs(sink: &mut dyn RowSink) {
    for [chosen, rejected] in PAIRS {
        let (c, r) = (labels(chosen), labels(rejected));
        let chosen = Row {
            ids: chosen,
            loss: &c,
        };
        let rejected = Row {
            ids: rejected,
            loss: &r,
        };
        sink.push_pair(chosen, rejected).unwrap();
    }
}

fn pairs() -> Shard {
    let mut builder = ShardBuilder::new();
    push_pairs(&mut builder);
    builder.finish(origin())
}

#[test]
fn pairs_are_rows_next_to_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.shard");
    let mut writer = ShardWriter::create(&path).unwrap();
    push_pairs(&mut writer);
    writer.finish(origin()).unwrap();
    let shard = Shard::open(&path).unwrap();
    shard.verify(|_, _| ()).unwrap();
    assert_eq!(shard.facts(), pairs().facts());
    assert_eq!(
        (shard.kind(), shard.rows(), shard.units()),
        (RowKind::Preferences, 6, 3)
    );
    for (unit, [chosen, rejected]) in PAIRS.iter().enumerate() {
        let rows = shard.rows_of(unit);
        assert_eq!(rows.len(), 2);
        assert_eq!(shard.row(rows.start).ids, *chosen);
        assert_eq!(shard.row(rows.start + 1).ids, *rejected);
    }
}

#[test]
fn a_shard_holds_one_kind_and_whole_pairs() {
    let row = Row {
        ids: &[1, 2],
        loss: &[0, 1],
    };
    let bad = Row {
        ids: &[1],
        loss: &[2],
    };
    let mut builder = ShardBuilder::new();
    assert!(matches!(
        builder.push_pair(row, bad),
        Err(ShardError::Row(_))
    ));
    assert!(matches!(
        builder.push_pair(bad, row),
        Err(ShardError::Row(_))
    ));
    builder.push_pair(row, row).unwrap();
    let error = builder.push(row.ids, row.loss).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a shard of preferences cannot hold examples"
    );
    assert!(error.hint().is_some());
    assert_eq!(builder.finish(origin()).rows(), 2);

    let mut builder = ShardBuilder::new();
    builder.push(row.ids, row.loss).unwrap();
    assert!(matches!(
        builder.push_unit(&pairs(), 0),
        Err(ShardError::MixedKinds { .. })
    ));
}

#[test]
fn the_digest_covers_the_kind() {
    let [mut examples, mut pair] = [ShardBuilder::new(), ShardBuilder::new()];
    let row = Row {
        ids: &[1, 2],
        loss: &[0, 1],
    };
    pair.push_pair(row, row).unwrap();
    for _ in 0..2 {
        examples.push(row.ids, row.loss).unwrap();
    }
    let (examples, pair) = (examples.finish(origin()), pair.finish(origin()));
    assert_eq!(read(&examples), read(&pair));
    assert_ne!(examples.facts().content, pair.facts().content);
}

#[test]
fn half_a_pair_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let facts = write(&path);
    let mut bytes = fs::read(&path).unwrap();
    let header = format::encode(&ShardFacts {
        kind: RowKind::Preferences,
        ..facts
    });
    bytes[..header.len()].copy_from_slice(&header);
    fs::write(&path, bytes).unwrap();
    let error = Shard::open(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("its last preference is not a pair"),
        "{error}"
    );
}

#[test]
fn a_subset_is_a_shard_of_some_units() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    write(&path);
    let mapped = Shard::open(&path).unwrap();
    let subset = mapped.subset(&[2, 0]);
    assert_eq!((subset.units(), subset.rows(), subset.tokens()), (2, 2, 11));
    assert_eq!(subset.loss_tokens(), 6);
    assert_eq!(
        (subset.row(0).ids, subset.row(1).ids),
        (ROWS[2].0, ROWS[0].0)
    );
    subset.verify(|_, _| ()).unwrap();
    assert_ne!(subset.facts().content, mapped.facts().content);
    assert_ne!(
        subset.facts().content,
        mapped.subset(&[0, 2]).facts().content
    );
    assert_eq!(
        subset.facts().content,
        mapped.subset(&[2, 0]).facts().content
    );
    assert_eq!(mapped.subset(&[]).units(), 0);

    let shard = pairs();
    let subset = shard.subset(&[2, 1]).subset(&[1, 0, 1]);
    let ids: Vec<_> = (0..subset.rows()).map(|i| subset.row(i).ids).collect();
    let expected = [PAIRS[1], PAIRS[2], PAIRS[1]].concat();
    assert_eq!(ids, expected);
    assert_eq!((subset.kind(), subset.units()), (RowKind::Preferences, 3));
    let tokens: usize = expected.iter().map(|ids| ids.len()).sum();
    assert_eq!(subset.tokens(), tokens as u64);
    assert_eq!(subset.loss_tokens(), (tokens - 6) as u64);
}

#[test]
#[should_panic(expected = "index out of bounds")]
fn a_subset_has_no_units_that_its_shard_lacks() {
    let _ = pairs().subset(&[1]).subset(&[1]);
}

#[test]
fn unfinished_shard_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path().join("a")).unwrap();
    writer.push(&[1], &[0]).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn every_truncation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    write(&path);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Shard::open(&path).unwrap_err();
        assert!(
            matches!(error, ShardError::NotAShard(_) | ShardError::Length { .. }),
            "{length}: {error}"
        );
        assert!(error.hint().is_some());
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(matches!(Shard::open(&path), Err(ShardError::Length { .. })));
}

#[test]
fn every_changed_byte_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    write(&path);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut broken = whole.clone();
        broken[at] ^= 1;
        fs::write(&path, &broken).unwrap();
        let result = Shard::open(&path).and_then(|shard| shard.verify(|_, _| ()));
        assert!(result.is_err(), "byte {at}");
    }
}

#[test]
fn other_layouts_and_tokenizers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    write(&path);
    let error = Shard::open(&path).unwrap().check_tokenizer(Digest([0; 32]));
    assert!(matches!(error, Err(ShardError::Tokenizer { .. })));
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 9;
    fs::write(&path, bytes).unwrap();
    let error = Shard::open(&path).unwrap_err().to_string();
    assert!(
        error.ends_with("has shard layout 9, this program reads layout 2"),
        "{error}"
    );
    assert!(matches!(
        Shard::open(dir.path().join("none")),
        Err(ShardError::Io { .. })
    ));
}
