//! The volume of a world as it can be seen: every name, attribute and byte.

use std::collections::BTreeMap;

use bytes::Bytes;
use tests::model::{digest, text};
use volume::ids::{DirCookie, InodeNo};
use volume::row::FileKind;
use volume::volume::Volume;

use super::World;

impl World {
    /// The volume as `Model::lines` would tell it.
    pub(super) async fn lines(&self, volume: &Volume) -> Vec<String> {
        let mut lines = Vec::new();
        let mut groups: BTreeMap<InodeNo, usize> = BTreeMap::new();
        let mut left = vec![(InodeNo::ROOT, String::new())];
        while let Some((ino, path)) = left.pop() {
            let attr = volume
                .getattr(ino)
                .await
                .unwrap_or_else(|error| panic!("{error} at {path}, {}", self.at()));
            let mut xattrs = Vec::new();
            for name in volume.listxattr(ino).await.expect("a list of attributes") {
                let value = volume.getxattr(ino, &name).await.expect("a listed attribute");
                xattrs.push(format!("{}={}", text(&name), digest(&value)));
            }
            let count = groups.len();
            let group = *groups.entry(ino).or_insert(count);
            let what = match attr.kind {
                FileKind::Directory => {
                    let names = self.names(volume, ino).await;
                    left.extend(
                        names
                            .iter()
                            .rev()
                            .map(|(name, ino)| (*ino, format!("{path}/{}", text(name)))),
                    );
                    format!("directory {} names", names.len())
                }
                FileKind::Symlink => format!("link to {}", text(&volume.readlink(ino).await.expect("a link"))),
                _ => {
                    let content = volume.read(ino, 0, u32::MAX).await;
                    let content = content
                        .unwrap_or_else(|error| panic!("{error} at {path}, {}", self.at()))
                        .concat();
                    assert_eq!(content.len() as u64, attr.size, "length of {path}, {}", self.at());
                    format!("file {} bytes {}", content.len(), digest(&content))
                }
            };
            let (mode, nlink) = (attr.mode, attr.nlink);
            lines.push(format!(
                "{path}/ #{group} {what} mode {mode:o} nlink {nlink} {}",
                xattrs.join(",")
            ));
        }
        lines
    }

    async fn names(&self, volume: &Volume, dir: InodeNo) -> BTreeMap<Bytes, InodeNo> {
        let (mut names, mut after) = (BTreeMap::new(), DirCookie(0));
        loop {
            let page = volume.readdir(dir, after, 3, true).await.expect("a listing");
            let Some(last) = page.last() else { return names };
            after = last.cookie;
            for entry in page
                .into_iter()
                .filter(|entry| !matches!(&entry.name[..], b"." | b".."))
            {
                let told = entry.attr.as_ref().map(|attr| (attr.ino, attr.kind));
                assert_eq!(told, Some((entry.ino, entry.kind)), "{}", self.at());
                assert!(
                    names.insert(entry.name, entry.ino).is_none(),
                    "listed twice, {}",
                    self.at()
                );
            }
        }
    }
}
