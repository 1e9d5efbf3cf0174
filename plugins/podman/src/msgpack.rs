//! Lenient reading of the msgpack that Nomad sends as configuration.
//!
//! Nomad encodes with go-cty (every attribute present, absent ones nil, numbers as int, float or decimal string); its Go
//! test harness encodes with go-msgpack (fewer fields, bin for strings, unsigned ints). Both mean the same, so a value is
//! accepted in every shape that has one obvious meaning. What has none is an error that names the key.
//! Absent: what the keys mean (config.rs, task_config.rs).

use std::collections::BTreeMap;

use rmpv::Value;

/// Why a configuration cannot be read. The text is shown to the person who wrote the job or the agent's file.
#[derive(Debug, thiserror::Error)]
pub enum MsgpackError {
    /// The bytes are not msgpack.
    #[error("the configuration is not msgpack")]
    Malformed(#[from] rmpv::decode::Error),
    /// The outermost value, or a block, is not a map.
    #[error("{key}: want a block, got {got}")]
    NotABlock {
        /// The path of the key, dotted.
        key: String,
        /// What was there, in HCL's words.
        got: &'static str,
    },
    /// A value has a type that cannot stand for the wanted one.
    #[error("{key}: want {want}, got {got}")]
    WrongType {
        /// The path of the key, dotted.
        key: String,
        /// The wanted type, in HCL's words.
        want: &'static str,
        /// What was there, in HCL's words.
        got: &'static str,
    },
}

/// The attributes of one block. Every getter takes its key out, so that what is left at the end is unknown.
#[derive(Debug, Default)]
pub struct Block {
    path: String,
    attributes: BTreeMap<String, Value>,
}

impl Block {
    /// Reads the outermost block from `bytes`. Empty bytes and nil are a block without attributes.
    ///
    /// # Errors
    /// `Malformed` when the bytes are not msgpack, `NotABlock` when they hold something other than a map.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, MsgpackError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let value = rmpv::decode::read_value(&mut bytes)?;
        Self::from_value("config", String::new(), value)
    }

    /// The value under `key` as it is, None when absent or nil.
    pub fn value(&mut self, key: &str) -> Option<Value> {
        self.attributes.remove(key).filter(|value| !value.is_nil())
    }

    /// A string. Numbers and bools are taken in their decimal form, as HCL itself converts them.
    ///
    /// # Errors
    /// `WrongType` for lists and maps.
    pub fn string(&mut self, key: &str) -> Result<Option<String>, MsgpackError> {
        let path = self.path_of(key);
        self.value(key).map(|value| as_string(&path, &value)).transpose()
    }

    /// A bool. The strings "true" and "false" are taken too.
    ///
    /// # Errors
    /// `WrongType` for anything else.
    pub fn bool(&mut self, key: &str) -> Result<Option<bool>, MsgpackError> {
        let path = self.path_of(key);
        let Some(value) = self.value(key) else { return Ok(None) };
        match (&value, as_text(&value).as_deref()) {
            (Value::Boolean(flag), _) => Ok(Some(*flag)),
            (_, Some("true")) => Ok(Some(true)),
            (_, Some("false")) => Ok(Some(false)),
            _ => Err(wrong(&path, "a bool", &value)),
        }
    }

    /// A whole number, from an integer, a float without fraction or a decimal string.
    ///
    /// # Errors
    /// `WrongType` for anything else, also for fractions and numbers outside of 64 bits.
    pub fn integer(&mut self, key: &str) -> Result<Option<i64>, MsgpackError> {
        let path = self.path_of(key);
        self.value(key).map(|value| as_integer(&path, &value)).transpose()
    }

    /// A list of strings; absent is empty.
    ///
    /// # Errors
    /// `WrongType` when it is no list or an element is no string.
    pub fn strings(&mut self, key: &str) -> Result<Vec<String>, MsgpackError> {
        let path = self.path_of(key);
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(|item| as_string(&path, item)).collect(),
            Some(other) => Err(wrong(&path, "a list of strings", &other)),
        }
    }

    /// A map of strings, written as one block, as several blocks (a list of maps, later ones win) or as a map.
    ///
    /// # Errors
    /// `WrongType` when it is neither, or a value is no string.
    pub fn string_map(&mut self, key: &str) -> Result<BTreeMap<String, String>, MsgpackError> {
        let path = self.path_of(key);
        let entries = self.merged(key, "a map of strings")?;
        entries
            .iter()
            .map(|(name, value)| Ok((name.clone(), as_string(&format!("{path}.{name}"), value)?)))
            .collect()
    }

    /// A map of whole numbers, written as `string_map`'s is.
    ///
    /// # Errors
    /// `WrongType` when it is neither, or a value is no whole number.
    pub fn integer_map(&mut self, key: &str) -> Result<BTreeMap<String, i64>, MsgpackError> {
        let path = self.path_of(key);
        let entries = self.merged(key, "a map of numbers")?;
        entries
            .iter()
            .map(|(name, value)| Ok((name.clone(), as_integer(&format!("{path}.{name}"), value)?)))
            .collect()
    }

    /// A nested block, None when absent.
    ///
    /// # Errors
    /// `NotABlock` when something else is there.
    pub fn block(&mut self, key: &str) -> Result<Option<Self>, MsgpackError> {
        Ok(self.blocks(key)?.pop())
    }

    /// All nested blocks of one name, in the order they were written.
    ///
    /// # Errors
    /// `NotABlock` when something else is there.
    pub fn blocks(&mut self, key: &str) -> Result<Vec<Self>, MsgpackError> {
        let path = self.path_of(key);
        let values = match self.value(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => vec![other],
        };
        values
            .into_iter()
            .map(|value| Self::from_value(&path, format!("{path}."), value))
            .collect()
    }

    /// The keys that nobody asked for.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.attributes.keys().map(String::as_str)
    }

    fn from_value(name: &str, path: String, value: Value) -> Result<Self, MsgpackError> {
        match value {
            Value::Nil => Ok(Self {
                path,
                attributes: BTreeMap::new(),
            }),
            Value::Map(entries) => {
                let attributes = entries
                    .into_iter()
                    .filter_map(|(key, value)| as_text(&key).map(|key| (key, value)))
                    .collect();
                Ok(Self { path, attributes })
            }
            other => Err(MsgpackError::NotABlock {
                key: name.to_owned(),
                got: kind(&other),
            }),
        }
    }

    fn merged(&mut self, key: &str, want: &'static str) -> Result<BTreeMap<String, Value>, MsgpackError> {
        let path = self.path_of(key);
        let maps = match self.value(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => vec![other],
        };
        let mut merged = BTreeMap::new();
        for map in maps {
            let Value::Map(entries) = map else {
                return Err(wrong(&path, want, &map));
            };
            for (name, value) in entries {
                let name = as_text(&name).ok_or_else(|| wrong(&path, want, &name))?;
                if !value.is_nil() {
                    merged.insert(name, value);
                }
            }
        }
        Ok(merged)
    }

    fn path_of(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }
}

/// Text of a string or of UTF-8 bytes; None for everything else.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.as_str().map(str::to_owned),
        Value::Binary(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        _ => None,
    }
}

/// A string from a scalar. Public to task_config.rs, whose `entrypoint` may be a string or a list.
pub(crate) fn as_string(path: &str, value: &Value) -> Result<String, MsgpackError> {
    match value {
        Value::Boolean(flag) => Ok(flag.to_string()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::F32(number) => Ok(number.to_string()),
        Value::F64(number) => Ok(number.to_string()),
        other => as_text(other).ok_or_else(|| wrong(path, "a string", other)),
    }
}

fn as_integer(path: &str, value: &Value) -> Result<i64, MsgpackError> {
    let number = match value {
        Value::Integer(number) => number.as_i64(),
        Value::F32(number) => whole(f64::from(*number)),
        Value::F64(number) => whole(*number),
        other => as_text(other).and_then(|text| text.trim().parse().ok()),
    };
    number.ok_or_else(|| wrong(path, "a whole number", value))
}

/// A float that is exactly a whole number within the range where floats hold all of them.
fn whole(number: f64) -> Option<i64> {
    /// 2^53: above it neighbouring integers share one float, so the number meant is unknown.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT_MAX).then_some(number as i64)
}

fn wrong(path: &str, want: &'static str, value: &Value) -> MsgpackError {
    MsgpackError::WrongType {
        key: path.to_owned(),
        want,
        got: kind(value),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nothing",
        Value::Boolean(_) => "a bool",
        Value::Integer(_) | Value::F32(_) | Value::F64(_) => "a number",
        Value::String(_) => "a string",
        Value::Binary(_) => "bytes",
        Value::Array(_) => "a list",
        Value::Map(_) => "a map",
        Value::Ext(_, _) => "an extension value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(entries: Vec<(&str, Value)>) -> Block {
        let map = Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| (Value::from(key), value))
                .collect(),
        );
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &map).unwrap();
        Block::decode(&bytes).unwrap()
    }

    #[test]
    fn empty_bytes_and_nil_are_an_empty_block() {
        assert_eq!(Block::decode(&[]).unwrap().unknown().count(), 0);
        assert_eq!(Block::decode(&[0xc0]).unwrap().unknown().count(), 0);
    }

    #[test]
    fn every_shape_of_a_number_is_read() {
        for shape in [
            Value::from(42i64),
            Value::from(42u64),
            Value::from(42.0f64),
            Value::from("42"),
        ] {
            assert_eq!(
                block(vec![("n", shape.clone())]).integer("n").unwrap(),
                Some(42),
                "{shape}"
            );
        }
        assert_eq!(block(vec![("n", Value::Nil)]).integer("n").unwrap(), None);
        for bad in [
            Value::from(1.5f64),
            Value::from("many"),
            Value::from(u64::MAX),
            Value::from(true),
        ] {
            let error = block(vec![("n", bad.clone())]).integer("n").unwrap_err();
            assert!(
                error.to_string().starts_with("n: want a whole number"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn strings_may_come_as_bytes() {
        let mut fields = block(vec![("s", Value::Binary(b"x".to_vec())), ("n", Value::from(7))]);
        assert_eq!(fields.string("s").unwrap().as_deref(), Some("x"));
        assert_eq!(fields.string("n").unwrap().as_deref(), Some("7"));
        let error = block(vec![("s", Value::Array(vec![]))]).string("s").unwrap_err();
        assert_eq!(error.to_string(), "s: want a string, got a list");
    }

    #[test]
    fn later_maps_win_when_a_block_is_written_twice() {
        let map = |pairs: &[(&str, &str)]| {
            Value::Map(
                pairs
                    .iter()
                    .map(|(key, value)| (Value::from(*key), Value::from(*value)))
                    .collect(),
            )
        };
        let list = Value::Array(vec![map(&[("a", "1"), ("b", "2")]), map(&[("b", "3")])]);
        let merged = block(vec![("labels", list)]).string_map("labels").unwrap();
        assert_eq!(
            merged,
            BTreeMap::from([("a".into(), "1".into()), ("b".into(), "3".into())])
        );
        assert_eq!(
            block(vec![("labels", map(&[("a", "1")]))])
                .string_map("labels")
                .unwrap()
                .len(),
            1
        );
        assert!(block(vec![("labels", Value::from("x"))]).string_map("labels").is_err());
    }

    #[test]
    fn a_key_inside_a_block_is_named_with_its_block() {
        let auth = Value::Map(vec![(Value::from("tls_verify"), Value::from(3))]);
        let mut fields = block(vec![("auth", auth), ("other", Value::from(1))]);
        let error = fields.block("auth").unwrap().unwrap().bool("tls_verify").unwrap_err();
        assert_eq!(error.to_string(), "auth.tls_verify: want a bool, got a number");
        assert_eq!(fields.unknown().collect::<Vec<_>>(), ["other"]);
    }

    #[test]
    fn bytes_that_are_no_map_are_refused() {
        assert!(matches!(Block::decode(&[0x01]), Err(MsgpackError::NotABlock { .. })));
        assert!(matches!(Block::decode(&[0x81]), Err(MsgpackError::Malformed(_))));
    }
}
