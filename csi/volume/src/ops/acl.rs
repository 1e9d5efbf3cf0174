//! POSIX access control lists, as far as a file system must understand them: the kernel checks them, but the mode of a file
//! and its list must tell the same, and what a directory passes on to new entries is decided here.
//!
//! Lists are kept as extended attributes in the form in which Linux passes them. Sources: acl(5), "Correspondence between
//! ACL entries and file permission bits" and "Object creation and default ACLs". Absent: rights of callers (the kernel's).

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::FsError;

/// The list that decides who may do what.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";

/// The list that a directory passes on.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The only version of the form that there is.
const VERSION: u32 = 2;

/// The permission bits of user, group and others.
const PERMISSIONS: u16 = 0o777;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    /// Of a user or group entry; without meaning for the others, and kept as given.
    id: u32,
}

/// A list that is in order: one entry each for the owner, the group and others; a mask where named entries are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Reads the value of an attribute.
    pub fn decode(value: &[u8]) -> Result<Self, FsError> {
        const WRONG: FsError = FsError::Invalid("that is no access control list");
        let word = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        let long = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if value.len() < 4 || !(value.len() - 4).is_multiple_of(8) || long(value) != VERSION {
            return Err(WRONG);
        }
        let entries: Vec<Entry> = value[4..]
            .chunks_exact(8)
            .map(|entry| Entry {
                tag: word(entry),
                permissions: word(&entry[2..]) & 0o7,
                id: long(&entry[4..]),
            })
            .collect();
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let known = entries
            .iter()
            .all(|entry| [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&entry.tag));
        let named = count(USER) + count(GROUP) > 0;
        let complete = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1);
        if known && complete && count(MASK) <= 1 && (!named || count(MASK) == 1) {
            Ok(Self(entries))
        } else {
            Err(WRONG)
        }
    }

    /// The value of an attribute.
    pub fn encode(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(4 + 8 * self.0.len());
        value.put_u32_le(VERSION);
        for entry in &self.0 {
            value.put_u16_le(entry.tag);
            value.put_u16_le(entry.permissions);
            value.put_u32_le(entry.id);
        }
        value.freeze()
    }

    fn entry(&mut self, tag: u16) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.tag == tag)
    }

    /// The entry that a mode's group bits stand for: the mask where there is one.
    fn group_class(&mut self) -> &mut Entry {
        let tag = if self.0.iter().any(|entry| entry.tag == MASK) {
            MASK
        } else {
            GROUP_OBJ
        };
        self.entry(tag).expect("a list has an entry for its group")
    }

    /// The permission bits that say the same as far as bits can.
    pub fn permissions(&self) -> u16 {
        let mut list = self.clone();
        let group = list.group_class().permissions;
        let user = list.entry(USER_OBJ).map_or(0, |entry| entry.permissions);
        let other = list.entry(OTHER).map_or(0, |entry| entry.permissions);
        user << 6 | group << 3 | other
    }

    /// True where the bits say all of it, so that no list need be kept.
    pub fn is_mode(&self) -> bool {
        self.0.len() == 3
    }

    /// The list after chmod(2).
    pub fn with_mode(mut self, mode: u16) -> Self {
        self.group_class().permissions = mode >> 3 & 0o7;
        for (tag, permissions) in [(USER_OBJ, mode >> 6 & 0o7), (OTHER, mode & 0o7)] {
            if let Some(entry) = self.entry(tag) {
                entry.permissions = permissions;
            }
        }
        self
    }

    /// The list of a new entry in a directory that passes this one on: no more than `mode` asks for.
    fn inherited(self, mode: u16) -> Self {
        let allowed = self.permissions() & mode;
        self.with_mode(allowed)
    }
}

/// What a new entry gets from its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inherited {
    /// Its mode.
    pub mode: u16,
    /// Its list, where the mode does not say all.
    pub access: Option<Bytes>,
    /// What it passes on itself, if it is a directory.
    pub default: Option<Bytes>,
}

/// What a new entry gets that asks for `mode` under `umask`, in a directory with these attributes. A list that the directory
/// passes on takes the umask's place.
pub(super) fn inherit(
    directory: Option<&BTreeMap<Bytes, Bytes>>,
    mode: u16,
    umask: u16,
    is_directory: bool,
) -> Result<Inherited, FsError> {
    let Some(default) = directory.and_then(|attributes| attributes.get(DEFAULT)) else {
        return Ok(Inherited {
            mode: mode & !(umask & PERMISSIONS),
            access: None,
            default: None,
        });
    };
    let list = Acl::decode(default)?.inherited(mode);
    Ok(Inherited {
        mode: mode & !PERMISSIONS | list.permissions(),
        access: (!list.is_mode()).then(|| list.encode()),
        default: is_directory.then(|| default.clone()),
    })
}

/// The mode with a list's permission bits.
pub(super) fn mode_with(mode: u16, list: &Acl) -> u16 {
    mode & !PERMISSIONS | list.permissions()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16, u32)]) -> Acl {
        let entry = |&(tag, permissions, id)| Entry { tag, permissions, id };
        Acl(entries.iter().map(entry).collect())
    }

    /// user::rwx user:1000:rw- group::r-x mask::rwx other::r--
    fn named() -> Acl {
        list(&[
            (USER_OBJ, 7, 0),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, 0),
            (MASK, 7, 0),
            (OTHER, 4, 0),
        ])
    }

    #[test]
    fn the_group_bits_of_a_mode_are_the_mask_of_its_list() {
        assert_eq!(named().permissions(), 0o774);
        let changed = named().with_mode(0o4651);
        assert_eq!(changed.permissions(), 0o651);
        assert_eq!(changed.0[2].permissions, 5, "the group's own entry stays");
        let plain = list(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]);
        assert!(plain.is_mode() && !named().is_mode());
        assert_eq!(plain.with_mode(0o751).permissions(), 0o751);
    }

    #[test]
    fn a_list_reads_back_as_written_and_nonsense_is_refused() {
        assert_eq!(Acl::decode(&named().encode()).unwrap(), named());
        let no_mask = list(&[(USER_OBJ, 7, 0), (USER, 6, 1), (GROUP_OBJ, 5, 0), (OTHER, 4, 0)]);
        let no_other = list(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0)]);
        for wrong in [
            no_mask.encode(),
            no_other.encode(),
            Bytes::from_static(b"\x02\0\0\0x"),
            Bytes::new(),
        ] {
            assert!(matches!(Acl::decode(&wrong), Err(FsError::Invalid(_))));
        }
    }

    #[test]
    fn a_default_list_takes_the_place_of_the_umask() {
        let attributes = BTreeMap::from([(Bytes::from_static(DEFAULT), named().encode())]);
        let file = inherit(Some(&attributes), 0o666, 0o077, false).unwrap();
        assert_eq!(file.mode, 0o664);
        assert_eq!(Acl::decode(&file.access.unwrap()).unwrap().0[1].permissions, 6);
        assert_eq!(file.default, None);
        let directory = inherit(Some(&attributes), 0o777, 0o077, true).unwrap();
        assert_eq!((directory.mode, directory.default), (0o774, Some(named().encode())));
        let plain = inherit(None, 0o666, 0o027, false).unwrap();
        assert_eq!((plain.mode, plain.access), (0o640, None));
    }
}
