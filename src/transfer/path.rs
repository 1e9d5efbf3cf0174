//! From keys to paths. Not every key is one, and a key that is none is told, never bent into another.

/// Longest name in a directory, in bytes (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// What a key below the prefix stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Meant<'a> {
    /// The prefix itself, as a marker of some programs.
    Nothing,
    /// A directory: the key ends in `/`.
    Directory(Vec<&'a str>),
    /// A file: names of directories, and its own last.
    File(Vec<&'a str>),
}

/// Reads the part of a key after the prefix.
///
/// # Errors
/// Why it cannot be a path, as the rest of a sentence.
pub fn meant(key: &str) -> Result<Meant<'_>, String> {
    if key.is_empty() {
        return Ok(Meant::Nothing);
    }
    let (path, is_directory) = match key.strip_suffix('/') {
        Some(path) => (path, true),
        None => (key, false),
    };
    let parts = parts(path)?;
    Ok(match is_directory {
        true => Meant::Directory(parts),
        false => Meant::File(parts),
    })
}

/// The names of a path.
///
/// # Errors
/// Why one cannot be a name, as the rest of a sentence.
pub fn parts(path: &str) -> Result<Vec<&str>, String> {
    let parts: Vec<&str> = path.split('/').collect();
    for part in &parts {
        match *part {
            "" => return Err("has an empty part between two slashes, which no path has".to_owned()),
            "." | ".." => return Err(format!("has {part:?} as a part, which is no name")),
            part if part.contains('\0') => return Err("has a NUL byte, which no name has".to_owned()),
            part if part.len() > NAME_BYTES_MAX => {
                return Err(format!(
                    "has a part of {} bytes; a name has at most {NAME_BYTES_MAX}",
                    part.len()
                ));
            }
            _ => {}
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_files_directories_or_refused() {
        assert_eq!(meant("").unwrap(), Meant::Nothing);
        assert_eq!(meant("a/b c").unwrap(), Meant::File(vec!["a", "b c"]));
        assert_eq!(meant("a/b/").unwrap(), Meant::Directory(vec!["a", "b"]));
        let long = "n".repeat(256);
        for key in ["/", "a//b", "a/../b", ".", "a\0b", "//", long.as_str()] {
            assert!(meant(key).is_err(), "{key:?}");
        }
        assert!(meant(&long[..255]).is_ok());
    }
}
