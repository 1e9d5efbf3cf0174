//! `s3://BUCKET/PREFIX`: where something is kept.

use std::fmt;
use std::str::FromStr;

/// A bucket and a prefix in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct S3Location {
    /// Name of the bucket.
    pub bucket: String,
    /// Empty, or ending in `/`; never beginning with one.
    pub prefix: String,
}

/// Why a text is no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Another scheme, or none.
    #[error("{url:?} does not begin with s3://")]
    Scheme {
        /// What was given.
        url: String,
    },
    /// S3 allows 3 to 63 of `a-z 0-9 . -`, a letter or digit at both ends.
    #[error("{bucket:?} in {url:?} cannot be the name of a bucket")]
    Bucket {
        /// What was given.
        url: String,
        /// Its part that should be a bucket.
        bucket: String,
    },
    /// Empty parts, `.`, `..` and control characters are read differently by different stores and tools.
    #[error("{url:?} has {part:?} as a part of its prefix")]
    Prefix {
        /// What was given.
        url: String,
        /// The part.
        part: String,
    },
}

impl S3Location {
    /// The location of something below this one. `key` has no leading slash.
    pub fn join(&self, key: &str) -> String {
        format!("s3://{}/{}{key}", self.bucket, self.prefix)
    }
}

impl FromStr for S3Location {
    type Err = LocationError;

    fn from_str(url: &str) -> Result<Self, LocationError> {
        let rest = url
            .strip_prefix("s3://")
            .ok_or_else(|| LocationError::Scheme { url: url.to_owned() })?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_bucket_name(bucket) {
            return Err(LocationError::Bucket {
                url: url.to_owned(),
                bucket: bucket.to_owned(),
            });
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if prefix.is_empty() {
            return Ok(Self {
                bucket: bucket.to_owned(),
                prefix: String::new(),
            });
        }
        let odd = |part: &&str| matches!(*part, "" | "." | "..") || part.chars().any(char::is_control);
        if let Some(part) = prefix.split('/').find(odd) {
            return Err(LocationError::Prefix {
                url: url.to_owned(),
                part: part.to_owned(),
            });
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: format!("{prefix}/"),
        })
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

/// S3 User Guide, "General purpose bucket naming rules".
fn is_bucket_name(name: &str) -> bool {
    let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    (3..=63).contains(&name.len())
        && end(name.bytes().next())
        && end(name.bytes().next_back())
        && name.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_bucket_and_a_prefix_that_ends_in_a_slash() {
        for (url, bucket, prefix) in [
            ("s3://data", "data", ""),
            ("s3://data/", "data", ""),
            ("s3://my.data-1/a", "my.data-1", "a/"),
            ("s3://data/a/b c/", "data", "a/b c/"),
        ] {
            let location: S3Location = url.parse().unwrap();
            assert_eq!(
                (location.bucket.as_str(), location.prefix.as_str()),
                (bucket, prefix),
                "{url}"
            );
        }
        let location: S3Location = "s3://data/a".parse().unwrap();
        assert_eq!(location.join("v/x/head"), "s3://data/a/v/x/head");
        assert_eq!(location.to_string().parse(), Ok(location));
    }

    #[test]
    fn a_wrong_url_is_refused_by_the_part_that_is_wrong() {
        for (url, word) in [
            ("data/a", "s3://"),
            ("https://data/a", "s3://"),
            ("s3://", "\"\""),
            ("s3:///a", "\"\""),
            ("s3://Data/a", "\"Data\""),
            ("s3://d_ta", "\"d_ta\""),
            ("s3://data//a", "\"\""),
            ("s3://data/a/../b", "\"..\""),
            ("s3://data/a//", "\"\""),
        ] {
            let error = url.parse::<S3Location>().unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
        }
    }
}
