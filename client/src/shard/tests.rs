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
        error.ends_with("has shard layout 9, this program reads layout 1"),
        "{error}"
    );
    assert!(matches!(
        Shard::open(dir.path().join("none")),
        Err(ShardError::Io { .. })
    ));
}
