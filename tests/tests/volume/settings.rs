//! What a volume file's parameters do to a mount.

use std::collections::BTreeMap;

use tests::volume_store::{CALLER, VolumeStore, content_of, make_file, options};
use volume::attr::Caller;
use volume::head::Parameters;
use volume::ids::InodeNo;

async fn store(pairs: &[(&str, &str)]) -> VolumeStore {
    let map: BTreeMap<String, String> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    VolumeStore::with(Parameters::from_map(&map).unwrap()).await
}

/// `umask`: nothing that is made gets these bits, whatever the program's own umask leaves.
#[tokio::test]
async fn a_volumes_umask_is_taken_away_besides_the_programs() {
    for (umask, file, directory) in [(None, 0o666, 0o777), (Some("0027"), 0o640, 0o750)] {
        let pairs: Vec<_> = umask.iter().map(|umask| ("umask", *umask)).collect();
        let store = store(&pairs).await;
        let volume = store.open(store.memory.clone(), options()).await;
        let made = volume.create(InodeNo::ROOT, b"f", 0o666, CALLER).await.unwrap();
        assert_eq!(made.mode, file, "{umask:?}");
        let made = volume.mkdir(InodeNo::ROOT, b"d", 0o777, CALLER).await.unwrap();
        assert_eq!(made.mode, directory, "{umask:?}");
        let strict = Caller { umask: 0o077, ..CALLER };
        let made = volume.create(InodeNo::ROOT, b"g", 0o666, strict).await.unwrap();
        assert_eq!(made.mode, 0o600, "{umask:?}");
        volume.close().await.unwrap();
    }
}

/// `readahead`: with 0 a program that reads in sequence costs the requests of what it reads; by default those ahead of it are made
/// early. Either way it reads what was written.
#[tokio::test]
async fn a_volume_without_readahead_reads_the_same() {
    for value in ["0", "1MiB", "16MiB"] {
        let store = store(&[("readahead", value), ("compression", "none")]).await;
        let content: Vec<u8> = (0..6_000_000_u32).map(|n| (n / 7 % 251) as u8).collect();
        let volume = store.open(store.memory.clone(), options()).await;
        let ino = make_file(&volume, "f", &content).await;
        volume.close().await.unwrap();
        let volume = store.open(store.memory.clone(), options()).await;
        let mut read = Vec::new();
        while read.len() < content.len() {
            let piece = volume.read(ino, read.len() as u64, 128 * 1024).await.unwrap();
            read.extend(piece.concat());
        }
        assert!(read == content, "{value}");
        assert!(content_of(&volume, ino).await == content);
        volume.close().await.unwrap();
    }
}
