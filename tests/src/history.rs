//! What was done to a tree of files, step by step, and what the tree must look like after each step.
//!
//! A step is what the engine sees as a whole: a program's "create and write" is two. So a crash leaves a tree that is equal to
//! the state after some step, and `matches` says after which. Absent: times and owners, which other tests look at.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

/// Names of this many files, so that they are met again and again.
const NAMES: u64 = 24;

/// 96 KiB: written with one request to the engine, so one step.
const WRITE_BYTES_MAX: u64 = 96 * 1024;

/// Beyond this a file is cut rather than appended to.
const FILE_BYTES_MAX: u64 = 512 * 1024;

/// Pseudo-random numbers (xorshift): the same seed gives the same ones everywhere.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Any seed will do.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.roll() >> 11) % limit
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len.div_ceil(8))
            .flat_map(|_| self.roll().to_le_bytes())
            .take(usize::try_from(len).expect("it fits in memory"))
            .collect()
    }
}

/// One step.
#[derive(Debug, Clone)]
pub enum Step {
    /// An empty file comes.
    Create(String),
    /// Bytes are written to a file.
    Write(String, u64, Vec<u8>),
    /// A file gets another length.
    Truncate(String, u64),
    /// A name moves, over another if there is one.
    Rename(String, String),
    /// A file gets one more name.
    Link(String, String),
    /// A name of a file or symlink goes.
    Unlink(String),
    /// A symlink comes.
    Symlink(String, String),
    /// A directory comes.
    Mkdir(String),
    /// An empty directory goes.
    Rmdir(String),
}

/// What a name is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    File(u64),
    Symlink(String),
    Directory,
}

/// A tree as it should be, or as it was found. Names are paths below its root.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
    files: BTreeMap<u64, Vec<u8>>,
    next_file: u64,
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|((a, x), (b, y))| {
                a == b
                    && match (x, y) {
                        (Entry::File(x), Entry::File(y)) => {
                            self.files[x] == other.files[y] && self.names_of(*x) == other.names_of(*y)
                        }
                        (x, y) => x == y,
                    }
            })
    }
}

impl Tree {
    fn names_of(&self, file: u64) -> Vec<&String> {
        let named = self.entries.iter().filter(|(_, entry)| **entry == Entry::File(file));
        named.map(|(name, _)| name).collect()
    }

    fn file(&mut self, name: &str) -> &mut Vec<u8> {
        match self.entries.get(name) {
            Some(Entry::File(file)) => self.files.get_mut(file).expect("an entry's file is there"),
            other => panic!("{name} is {other:?}, not a file"),
        }
    }

    /// What a step makes of it.
    ///
    /// # Panics
    /// If the step does not fit: steps come from `plan`.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Create(name) => {
                self.entries.insert(name.clone(), Entry::File(self.next_file));
                self.files.insert(self.next_file, Vec::new());
                self.next_file += 1;
            }
            Step::Write(name, offset, bytes) => {
                let (file, start) = (self.file(name), usize::try_from(*offset).expect("a small file"));
                file.resize(file.len().max(start + bytes.len()), 0);
                file[start..start + bytes.len()].copy_from_slice(bytes);
            }
            Step::Truncate(name, len) => self.file(name).resize(usize::try_from(*len).expect("a small file"), 0),
            Step::Rename(from, to) => {
                let entry = self.entries.remove(from).expect("what is renamed is there");
                self.entries.insert(to.clone(), entry);
            }
            Step::Link(from, to) => {
                let entry = self.entries[from].clone();
                self.entries.insert(to.clone(), entry);
            }
            Step::Unlink(name) | Step::Rmdir(name) => drop(self.entries.remove(name)),
            Step::Symlink(name, target) => drop(self.entries.insert(name.clone(), Entry::Symlink(target.clone()))),
            Step::Mkdir(name) => drop(self.entries.insert(name.clone(), Entry::Directory)),
        }
    }

    /// What lies below `root`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_from(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree::default();
        tree.read_folder(root, "")?;
        Ok(tree)
    }

    fn read_folder(&mut self, root: &Path, below: &str) -> io::Result<()> {
        for entry in fs::read_dir(root.join(below))? {
            let name = entry?.file_name().into_string().expect("our names are text");
            let name = if below.is_empty() {
                name
            } else {
                format!("{below}/{name}")
            };
            let path = root.join(&name);
            let metadata = fs::symlink_metadata(&path)?;
            let entry = if metadata.is_dir() {
                self.read_folder(root, &name)?;
                Entry::Directory
            } else if metadata.is_symlink() {
                Entry::Symlink(fs::read_link(&path)?.into_os_string().into_string().expect("text"))
            } else {
                self.files.insert(metadata.ino(), fs::read(&path)?);
                self.next_file = self.next_file.max(metadata.ino() + 1);
                Entry::File(metadata.ino())
            };
            self.entries.insert(name, entry);
        }
        Ok(())
    }

    /// The steps of the next thing that a program might do, all of which `carry_out` does.
    pub fn plan(&self, dice: &mut Dice) -> Vec<Step> {
        let name = format!("n{}", dice.below(NAMES));
        let other = format!("n{}", dice.below(NAMES));
        match (self.entries.get(&name), dice.below(10)) {
            (None, 0) => vec![Step::Symlink(name, format!("to-{other}"))],
            (None, 1) => vec![Step::Mkdir(name)],
            (None, _) => {
                let bytes = self.content(dice);
                vec![Step::Create(name.clone()), Step::Write(name, 0, bytes)]
            }
            (Some(Entry::Directory), _) => vec![Step::Rmdir(name)],
            (Some(Entry::Symlink(_)), _) => vec![Step::Unlink(name)],
            (Some(Entry::File(_)), 0) => vec![Step::Unlink(name)],
            (Some(Entry::File(_)), 1) if !self.entries.contains_key(&other) => vec![Step::Link(name, other)],
            (Some(Entry::File(file)), 2 | 3) => match self.entries.get(&other) {
                // Renaming a file over another of its own names does nothing.
                Some(Entry::File(target)) if target == file => vec![Step::Unlink(name)],
                Some(Entry::Directory) => vec![Step::Rmdir(other)],
                Some(Entry::File(_) | Entry::Symlink(_)) | None => vec![Step::Rename(name, other)],
            },
            (Some(Entry::File(file)), choice) => self.plan_write(name, *file, choice, dice),
        }
    }

    fn plan_write(&self, name: String, file: u64, choice: u64, dice: &mut Dice) -> Vec<Step> {
        let len = self.files[&file].len() as u64;
        let bytes = self.content(dice);
        match choice {
            4 => vec![Step::Truncate(name, dice.below(len + 1000))],
            5 => vec![Step::Truncate(name.clone(), 0), Step::Write(name, 0, bytes)],
            6 | 7 if len > 0 => vec![Step::Write(name, dice.below(len), bytes)],
            _ if len > FILE_BYTES_MAX => vec![Step::Truncate(name, 100)],
            _ => vec![Step::Write(name, len, bytes)],
        }
    }

    /// Mostly small, sometimes many pages; never nothing, because that would be no step.
    fn content(&self, dice: &mut Dice) -> Vec<u8> {
        let limit = [100, 5_000, 5_000, WRITE_BYTES_MAX][usize::try_from(dice.below(4)).expect("below four")];
        let len = 1 + dice.below(limit);
        dice.bytes(len)
    }
}

/// Does the steps of one plan to the files below `root`. What is written has reached the engine when this returns.
///
/// # Errors
/// What the kernel says.
pub fn carry_out(root: &Path, steps: &[Step]) -> io::Result<()> {
    match steps {
        [Step::Create(name), Step::Write(_, offset, bytes)] => {
            write(OpenOptions::new().create_new(true), &root.join(name), *offset, bytes)
        }
        [Step::Truncate(name, 0), Step::Write(_, offset, bytes)] => {
            write(OpenOptions::new().truncate(true), &root.join(name), *offset, bytes)
        }
        [Step::Write(name, offset, bytes)] => write(&mut OpenOptions::new(), &root.join(name), *offset, bytes),
        [Step::Truncate(name, len)] => OpenOptions::new().write(true).open(root.join(name))?.set_len(*len),
        [Step::Rename(from, to)] => fs::rename(root.join(from), root.join(to)),
        [Step::Link(from, to)] => fs::hard_link(root.join(from), root.join(to)),
        [Step::Unlink(name)] => fs::remove_file(root.join(name)),
        [Step::Symlink(name, target)] => symlink(target, root.join(name)),
        [Step::Mkdir(name)] => fs::create_dir(root.join(name)),
        [Step::Rmdir(name)] => fs::remove_dir(root.join(name)),
        other => panic!("no plan has these steps: {other:?}"),
    }
}

fn write(options: &mut OpenOptions, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let file = options.write(true).open(path)?;
    file.write_all_at(bytes, offset)?;
    close(file)
}

/// close(2) gives the kernel's pages to the engine, and tells what went wrong, which dropping would hide.
fn close(file: File) -> io::Result<()> {
    nix::unistd::close(file).map_err(io::Error::from)
}

/// After how many of `steps` (between `least` and all of them) `start` becomes `found`, if so: the greatest such number.
pub fn matches(start: &Tree, steps: &[Step], least: usize, found: &Tree) -> Option<usize> {
    let mut tree = start.clone();
    let mut after = None;
    for done in 0..=steps.len() {
        if done > 0 {
            tree.apply(&steps[done - 1]);
        }
        if done >= least && tree == *found {
            after = Some(done);
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the model itself is right. Method: do a thousand plans to a real file system and compare.
    #[test]
    fn the_model_follows_a_real_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let (mut tree, mut dice, mut all) = (Tree::default(), Dice::new(1), Vec::new());
        for _ in 0..1000 {
            let steps = tree.plan(&mut dice);
            carry_out(dir.path(), &steps).unwrap();
            steps.iter().for_each(|step| tree.apply(step));
            all.extend(steps);
        }
        let found = Tree::read_from(dir.path()).unwrap();
        assert!(tree == found);
        assert_eq!(matches(&Tree::default(), &all, 0, &found), Some(all.len()));
        let other = Tree::default();
        assert_eq!(
            matches(&Tree::default(), &all, 1, &other),
            None,
            "something was there ever after"
        );
    }
}
