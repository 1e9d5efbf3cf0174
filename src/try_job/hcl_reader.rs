//! Typed reading of one HCL body, so that nothing in a file is passed over: what is not taken is named by `finish`.
//!
//! Callers: `job_file.rs`, `volume_file.rs`. Absent: what the keys mean.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hcl::eval::{Context, Evaluate as _};
use hcl::{Block, Body, Expression, Value};

/// What is wrong with a job or volume file: which file, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum HclFileError {
    /// The file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// Not HCL.
    #[error("{file} is not valid HCL: {detail}")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The parser's words, with the line.
        detail: String,
    },
    /// A key or block that does not exist there.
    #[error("{at}: unknown key `{key}` in {place}; known are: {known}")]
    Unknown {
        /// File and line.
        at: String,
        /// The key.
        key: String,
        /// The blocks around it.
        place: String,
        /// What could stand there.
        known: String,
    },
    /// A key or block that Nomad knows and `pannier try` does not play.
    #[error("{at}: `{key}` in {place} is not played by `pannier try`: {why}; remove it, or run the job on Nomad")]
    NotPlayed {
        /// File and line.
        at: String,
        /// The key.
        key: String,
        /// The blocks around it.
        place: String,
        /// Why not.
        why: &'static str,
    },
    /// Something that must be there is not.
    #[error("{file}: {place} needs `{key}`")]
    Missing {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The blocks around it.
        place: String,
    },
    /// A value of another type or outside its range.
    #[error("{at}: `{key}` in {place} must be {want}, not {got}")]
    Type {
        /// File and line.
        at: String,
        /// The key.
        key: String,
        /// The blocks around it.
        place: String,
        /// What it must be.
        want: String,
        /// What it is.
        got: String,
    },
    /// An expression that does not evaluate.
    #[error("{at}: `{key}` in {place}: {detail}")]
    Expression {
        /// File and line.
        at: String,
        /// The key.
        key: String,
        /// The blocks around it.
        place: String,
        /// The evaluator's words.
        detail: String,
    },
}

/// A file's text with its name, for errors that say where.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    text: String,
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// `Read` if it cannot be read as UTF-8 text.
    pub fn read(file: &Path) -> Result<Self, HclFileError> {
        let text = std::fs::read_to_string(file).map_err(|source| HclFileError::Read {
            file: file.to_owned(),
            source,
        })?;
        Ok(Self {
            file: file.to_owned(),
            text,
        })
    }

    /// A text with a name, for tests and generated files.
    pub fn from_text(file: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            text: text.into(),
        }
    }

    /// Parses the whole file.
    ///
    /// # Errors
    /// `Syntax`, with the line.
    pub fn parse(&self) -> Result<Body, HclFileError> {
        hcl::parse(&self.text).map_err(|error| HclFileError::Syntax {
            file: self.file.clone(),
            detail: error.to_string(),
        })
    }

    /// `file:line` of the first line that begins with this key; the file alone if none does.
    pub fn locate(&self, key: &str) -> String {
        let starts_with_key = |line: &str| {
            line.trim_start()
                .trim_start_matches('"')
                .strip_prefix(key)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_whitespace() || matches!(c, '=' | '{' | '"')))
        };
        match self.text.lines().position(starts_with_key) {
            Some(index) => format!("{}:{}", self.file.display(), index + 1),
            None => self.file.display().to_string(),
        }
    }
}

/// Reads one body; take every key that is known, then `finish`.
#[derive(Debug)]
pub struct BodyReader<'a> {
    source: &'a Source,
    context: &'a Context<'a>,
    place: String,
    attributes: Vec<(&'a str, &'a Expression)>,
    blocks: Vec<&'a Block>,
    known: Vec<&'static str>,
}

impl<'a> BodyReader<'a> {
    /// `place` names the blocks around the body, such as `job "web"`; `context` holds the variables that may be used.
    pub fn new(source: &'a Source, context: &'a Context<'a>, place: String, body: &'a Body) -> Self {
        Self {
            source,
            context,
            place,
            attributes: body
                .attributes()
                .map(|attribute| (attribute.key(), attribute.expr()))
                .collect(),
            blocks: body.blocks().collect(),
            known: Vec::new(),
        }
    }

    /// The reader of a block inside this body.
    pub fn inside(&self, block: &'a Block) -> BodyReader<'a> {
        let mut place = format!("{} > {}", self.place, block.identifier());
        for label in block.labels() {
            place.push_str(&format!(" \"{}\"", label.as_str()));
        }
        BodyReader::new(
            self.source,
            self.context,
            place.trim_start_matches(" > ").to_owned(),
            block.body(),
        )
    }

    /// The blocks around, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// An attribute's value, if it is there.
    ///
    /// # Errors
    /// `Expression` if it does not evaluate.
    pub fn value(&mut self, key: &'static str) -> Result<Option<Value>, HclFileError> {
        self.known.push(key);
        let Some(index) = self.attributes.iter().position(|(name, _)| *name == key) else {
            return Ok(None);
        };
        let (_, expression) = self.attributes.swap_remove(index);
        let value = expression
            .evaluate(self.context)
            .map_err(|error| HclFileError::Expression {
                at: self.source.locate(key),
                key: key.to_owned(),
                place: self.place.clone(),
                detail: error.to_string(),
            })?;
        Ok(Some(value))
    }

    /// A string; numbers and booleans become their text, as Nomad does.
    ///
    /// # Errors
    /// `Type` for lists and maps.
    pub fn string(&mut self, key: &'static str) -> Result<Option<String>, HclFileError> {
        match self.value(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(value) => text_of(&value)
                .map(Some)
                .ok_or_else(|| self.wrong(key, "a string", &value)),
        }
    }

    /// A string that must be there.
    ///
    /// # Errors
    /// `Missing`, `Type`.
    pub fn required_string(&mut self, key: &'static str) -> Result<String, HclFileError> {
        self.string(key)?.ok_or_else(|| self.missing(key))
    }

    /// A boolean.
    ///
    /// # Errors
    /// `Type` for anything that is not `true` or `false`.
    pub fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, HclFileError> {
        match self.value(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(value) => Err(self.wrong(key, "true or false", &value)),
        }
    }

    /// A whole number of at least 0.
    ///
    /// # Errors
    /// `Type` for anything else.
    pub fn count(&mut self, key: &'static str) -> Result<Option<u64>, HclFileError> {
        match self.value(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) if number.as_u64().is_some() => Ok(number.as_u64()),
            Some(value) => Err(self.wrong(key, "a whole number of at least 0", &value)),
        }
    }

    /// A list of strings.
    ///
    /// # Errors
    /// `Type` for anything else.
    pub fn strings(&mut self, key: &'static str) -> Result<Option<Vec<String>>, HclFileError> {
        match self.value(key)? {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_array()
                .and_then(|items| items.iter().map(text_of).collect())
                .map(Some)
                .ok_or_else(|| self.wrong(key, "a list of strings", &value)),
        }
    }

    /// A duration such as `"30s"` or `"1m30s"`.
    ///
    /// # Errors
    /// `Type` for anything else.
    pub fn duration(&mut self, key: &'static str) -> Result<Option<Duration>, HclFileError> {
        let Some(text) = self.string(key)? else {
            return Ok(None);
        };
        parse_duration(&text)
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a duration such as \"30s\" or \"1m30s\"", &Value::from(text)))
    }

    /// All blocks of this name.
    pub fn blocks(&mut self, name: &'static str) -> Vec<&'a Block> {
        self.known.push(name);
        let (taken, left) = self.blocks.iter().partition(|block| block.identifier() == name);
        self.blocks = left;
        taken
    }

    /// The one block of this name, if it is there.
    ///
    /// # Errors
    /// `Type` if there are several.
    pub fn block(&mut self, name: &'static str) -> Result<Option<&'a Block>, HclFileError> {
        let blocks = self.blocks(name);
        if blocks.len() > 1 {
            return Err(HclFileError::Type {
                at: self.source.locate(name),
                key: name.to_owned(),
                place: self.place.clone(),
                want: "given once".to_owned(),
                got: format!("{} times", blocks.len()),
            });
        }
        Ok(blocks.first().copied())
    }

    /// A map of strings, written as a block or as an attribute.
    ///
    /// # Errors
    /// `Type` if a value is no string, `Expression` if one does not evaluate.
    pub fn string_map(&mut self, key: &'static str) -> Result<Vec<(String, String)>, HclFileError> {
        let mut pairs = Vec::new();
        if let Some(value) = self.value(key)? {
            let object = value
                .as_object()
                .ok_or_else(|| self.wrong(key, "a map of strings", &value))?;
            for (name, value) in object {
                pairs.push((
                    name.clone(),
                    text_of(value).ok_or_else(|| self.wrong(key, "a map of strings", value))?,
                ));
            }
        }
        for block in self.blocks(key) {
            for attribute in block.body().attributes() {
                let value = attribute
                    .expr()
                    .evaluate(self.context)
                    .map_err(|error| HclFileError::Expression {
                        at: self.source.locate(attribute.key()),
                        key: attribute.key().to_owned(),
                        place: format!("{} > {key}", self.place),
                        detail: error.to_string(),
                    })?;
                let text = text_of(&value).ok_or_else(|| self.wrong(key, "a map of strings", &value))?;
                pairs.push((attribute.key().to_owned(), text));
            }
        }
        Ok(pairs)
    }

    /// Refuses keys that Nomad knows but that are not played here, naming the first.
    ///
    /// # Errors
    /// `NotPlayed`.
    pub fn refuse(&mut self, keys: &[&'static str], why: &'static str) -> Result<(), HclFileError> {
        for key in keys {
            let there = self.attributes.iter().any(|(name, _)| name == key)
                || self.blocks.iter().any(|block| block.identifier() == *key);
            if there {
                return Err(HclFileError::NotPlayed {
                    at: self.source.locate(key),
                    key: (*key).to_owned(),
                    place: self.place.clone(),
                    why,
                });
            }
        }
        Ok(())
    }

    /// Passes over keys that mean nothing on a single machine.
    pub fn pass_over(&mut self, keys: &[&'static str]) {
        self.attributes.retain(|(name, _)| !keys.contains(name));
        self.blocks.retain(|block| !keys.contains(&block.identifier()));
        self.known.extend(keys);
    }

    /// Says which key or block nobody took.
    ///
    /// # Errors
    /// `Unknown`, with what could stand there.
    pub fn finish(mut self) -> Result<(), HclFileError> {
        let unknown = self.attributes.first().map(|(name, _)| *name);
        let Some(key) = unknown.or_else(|| self.blocks.first().map(|block| block.identifier())) else {
            return Ok(());
        };
        self.known.sort_unstable();
        self.known.dedup();
        Err(HclFileError::Unknown {
            at: self.source.locate(key),
            key: key.to_owned(),
            place: if self.place.is_empty() {
                "the file".to_owned()
            } else {
                self.place
            },
            known: self.known.join(", "),
        })
    }

    /// The error for a key that must be there.
    pub fn missing(&self, key: &str) -> HclFileError {
        HclFileError::Missing {
            file: self.source.file.clone(),
            key: key.to_owned(),
            place: self.place.clone(),
        }
    }

    /// The error for a value of the wrong kind.
    pub fn wrong(&self, key: &str, want: &str, got: &Value) -> HclFileError {
        HclFileError::Type {
            at: self.source.locate(key),
            key: key.to_owned(),
            place: self.place.clone(),
            want: want.to_owned(),
            got: hcl::format::to_string(got).map_or_else(|_| "that".to_owned(), |text| text.trim().to_owned()),
        }
    }
}

/// The text of a string, number or boolean.
pub fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A duration as Go writes it: numbers with the units ns, us, ms, s, m, h; `None` if it is not one.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |at| digits + at);
        let seconds = match &rest[digits..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &rest[unit_end..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_as_go_writes_it() {
        assert_eq!(parse_duration("30s"), Some(Duration::from_secs(30)));
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("30"), None);
        assert_eq!(parse_duration("soon"), None);
        assert_eq!(parse_duration(""), None);
    }
}
