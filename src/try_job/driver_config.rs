//! A task's `config` block, encoded as Nomad does it: read against the driver's own schema (hclspec), sent as msgpack.
//!
//! Facts: an object becomes a map with all of its attributes, absent ones nil, absent block lists empty; numbers are
//! compact integers where they are whole. A block may stand where the schema wants a list of maps, or a map.

use hcl::eval::{Context, Evaluate as _};
use hcl::{Body, Value};
use proto::nomad::hclspec::{self, spec};

use super::hcl_reader::{HclFileError, Source, text_of};

/// Encodes a config body against a schema.
///
/// # Errors
/// `Unknown`, `Type`, `Missing` or `Expression`, naming the key and its line.
pub fn encode(
    source: &Source,
    context: &Context<'_>,
    body: &Body,
    schema: &hclspec::Spec,
) -> Result<Vec<u8>, HclFileError> {
    let encoder = Encoder { source, context };
    let value = encoder.object(body, schema, "config")?;
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &value).expect("a vector takes all bytes");
    Ok(bytes)
}

struct Encoder<'a> {
    source: &'a Source,
    context: &'a Context<'a>,
}

/// The keys of the body that a spec reads, and how.
fn names(schema: &hclspec::Spec, into: &mut Vec<String>) {
    match &schema.block {
        Some(spec::Block::Object(object)) => {
            let mut keys: Vec<_> = object.attributes.iter().collect();
            keys.sort_by_key(|(key, _)| key.as_str());
            for (_, nested) in keys {
                names(nested, into);
            }
        }
        Some(spec::Block::Array(array)) => array.values.iter().for_each(|nested| names(nested, into)),
        Some(spec::Block::Attr(attr)) => into.push(attr.name.clone()),
        Some(spec::Block::BlockValue(block)) => into.push(block.name.clone()),
        Some(spec::Block::BlockAttrs(block)) => into.push(block.name.clone()),
        Some(spec::Block::BlockList(block)) => into.push(block.name.clone()),
        Some(spec::Block::BlockSet(block)) => into.push(block.name.clone()),
        Some(spec::Block::BlockMap(block)) => into.push(block.name.clone()),
        Some(spec::Block::Default(default)) => {
            if let Some(primary) = &default.primary {
                names(primary, into);
            }
        }
        Some(spec::Block::Literal(_)) | None => {}
    }
}

impl Encoder<'_> {
    /// Reads `body` by an object schema, and refuses what the schema does not name.
    fn object(&self, body: &Body, schema: &hclspec::Spec, place: &str) -> Result<rmpv::Value, HclFileError> {
        let mut known = Vec::new();
        names(schema, &mut known);
        let attributes = body.attributes().map(hcl::Attribute::key);
        let blocks = body.blocks().map(hcl::Block::identifier);
        if let Some(key) = attributes
            .chain(blocks)
            .find(|key| !known.iter().any(|name| name == key))
        {
            return Err(HclFileError::Unknown {
                at: self.source.locate(key),
                key: key.to_owned(),
                place: place.to_owned(),
                known: known.join(", "),
            });
        }
        self.value(body, schema, place)
    }

    fn value(&self, body: &Body, schema: &hclspec::Spec, place: &str) -> Result<rmpv::Value, HclFileError> {
        match &schema.block {
            Some(spec::Block::Object(object)) => {
                let mut keys: Vec<_> = object.attributes.iter().collect();
                keys.sort_by_key(|(key, _)| key.as_str());
                let mut pairs = Vec::new();
                for (key, nested) in keys {
                    pairs.push((rmpv::Value::from(key.as_str()), self.value(body, nested, place)?));
                }
                Ok(rmpv::Value::Map(pairs))
            }
            Some(spec::Block::Array(array)) => array
                .values
                .iter()
                .map(|nested| self.value(body, nested, place))
                .collect::<Result<_, _>>()
                .map(rmpv::Value::Array),
            Some(spec::Block::Attr(attr)) => self.attribute(body, attr, place),
            Some(spec::Block::BlockValue(block)) => {
                let found = body.blocks().find(|candidate| candidate.identifier() == block.name);
                self.nested(found, block.nested.as_deref(), (&block.name, block.required), place)
            }
            Some(spec::Block::BlockAttrs(block)) => {
                let found = body.blocks().find(|candidate| candidate.identifier() == block.name);
                let Some(found) = found else {
                    return Ok(rmpv::Value::Nil);
                };
                self.map_of(found.body(), place)
            }
            Some(spec::Block::BlockList(block)) => self
                .nested_all(body, &block.name, block.nested.as_deref(), place)
                .map(rmpv::Value::Array),
            Some(spec::Block::BlockSet(block)) => self
                .nested_all(body, &block.name, block.nested.as_deref(), place)
                .map(rmpv::Value::Array),
            Some(spec::Block::BlockMap(block)) => {
                let mut pairs = Vec::new();
                for found in body.blocks().filter(|candidate| candidate.identifier() == block.name) {
                    let label = found.labels().first().map_or("", |label| label.as_str());
                    let value = self.nested(Some(found), block.nested.as_deref(), (&block.name, false), place)?;
                    pairs.push((rmpv::Value::from(label), value));
                }
                Ok(rmpv::Value::Map(pairs))
            }
            Some(spec::Block::Default(default)) => self.with_default(body, default, place),
            Some(spec::Block::Literal(literal)) => self.literal(&literal.value),
            None => Ok(rmpv::Value::Nil),
        }
    }

    fn with_default(&self, body: &Body, default: &hclspec::Default, place: &str) -> Result<rmpv::Value, HclFileError> {
        let primary = match &default.primary {
            Some(primary) => self.value(body, primary, place)?,
            None => rmpv::Value::Nil,
        };
        match &default.default {
            Some(fallback) if primary.is_nil() => self.value(body, fallback, place),
            _ => Ok(primary),
        }
    }

    /// A literal of the schema is HCL expression text.
    fn literal(&self, text: &str) -> Result<rmpv::Value, HclFileError> {
        let body = hcl::parse(&format!("value = {text}\n")).map_err(|error| HclFileError::Syntax {
            file: "the driver's schema".into(),
            detail: format!("default {text}: {error}"),
        })?;
        let attribute = body.attributes().next().expect("the text above has one attribute");
        let value = self.evaluate(attribute, "the driver's schema")?;
        Ok(msgpack(&value))
    }

    fn evaluate(&self, attribute: &hcl::Attribute, place: &str) -> Result<Value, HclFileError> {
        attribute
            .expr()
            .evaluate(self.context)
            .map_err(|error| HclFileError::Expression {
                at: self.source.locate(attribute.key()),
                key: attribute.key().to_owned(),
                place: place.to_owned(),
                detail: error.to_string(),
            })
    }

    fn attribute(&self, body: &Body, attr: &hclspec::Attr, place: &str) -> Result<rmpv::Value, HclFileError> {
        let found = body.attributes().find(|attribute| attribute.key() == attr.name);
        let blocks: Vec<_> = body.blocks().filter(|block| block.identifier() == attr.name).collect();
        let value = match found {
            Some(attribute) => self.evaluate(attribute, place)?,
            None if !blocks.is_empty() => self.blocks_as_value(&blocks, &attr.r#type, place)?,
            None if attr.required => {
                return Err(HclFileError::Missing {
                    file: self.source.file.clone(),
                    key: attr.name.clone(),
                    place: place.to_owned(),
                });
            }
            None => return Ok(rmpv::Value::Nil),
        };
        convert(&value, &attr.r#type).ok_or_else(|| HclFileError::Type {
            at: self.source.locate(&attr.name),
            key: attr.name.clone(),
            place: place.to_owned(),
            want: format!("of type {}", attr.r#type),
            got: hcl::format::to_string(&value).map_or_else(|_| "that".to_owned(), |text| text.trim().to_owned()),
        })
    }

    /// `labels { a = "b" }` is how HCL writes a list of maps, or a map.
    fn blocks_as_value(&self, blocks: &[&hcl::Block], kind: &str, place: &str) -> Result<Value, HclFileError> {
        let mut maps = Vec::new();
        for block in blocks {
            let mut map = hcl::Map::new();
            for attribute in block.body().attributes() {
                map.insert(attribute.key().to_owned(), self.evaluate(attribute, place)?);
            }
            maps.push(Value::Object(map));
        }
        if kind.starts_with("map") && maps.len() == 1 {
            return Ok(maps.remove(0));
        }
        Ok(Value::Array(maps))
    }

    fn nested(
        &self,
        found: Option<&hcl::Block>,
        schema: Option<&hclspec::Spec>,
        (name, required): (&str, bool),
        place: &str,
    ) -> Result<rmpv::Value, HclFileError> {
        match (found, schema) {
            (Some(block), Some(schema)) => self.object(block.body(), schema, &format!("{place} > {name}")),
            (None, _) if required => Err(HclFileError::Missing {
                file: self.source.file.clone(),
                key: name.to_owned(),
                place: place.to_owned(),
            }),
            _ => Ok(rmpv::Value::Nil),
        }
    }

    fn nested_all(
        &self,
        body: &Body,
        name: &str,
        schema: Option<&hclspec::Spec>,
        place: &str,
    ) -> Result<Vec<rmpv::Value>, HclFileError> {
        body.blocks()
            .filter(|block| block.identifier() == name)
            .map(|block| self.nested(Some(block), schema, (name, false), place))
            .collect()
    }

    fn map_of(&self, body: &Body, place: &str) -> Result<rmpv::Value, HclFileError> {
        let mut pairs = Vec::new();
        for attribute in body.attributes() {
            pairs.push((
                rmpv::Value::from(attribute.key()),
                msgpack(&self.evaluate(attribute, place)?),
            ));
        }
        Ok(rmpv::Value::Map(pairs))
    }
}

/// Converts a value to a schema type as HCL does (numbers and booleans become strings and back); `None` if it cannot be.
fn convert(value: &Value, kind: &str) -> Option<rmpv::Value> {
    if matches!(value, Value::Null) {
        return Some(rmpv::Value::Nil);
    }
    let inner = |prefix: &str| kind.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(')'));
    if let Some(item) = inner("list(").or_else(|| inner("set(")) {
        return value
            .as_array()?
            .iter()
            .map(|value| convert(value, item))
            .collect::<Option<_>>()
            .map(rmpv::Value::Array);
    }
    if let Some(item) = inner("map(") {
        let pairs = value.as_object()?.iter();
        return pairs
            .map(|(key, value)| Some((rmpv::Value::from(key.as_str()), convert(value, item)?)))
            .collect::<Option<_>>()
            .map(rmpv::Value::Map);
    }
    match kind {
        "string" => text_of(value).map(rmpv::Value::from),
        "number" => match value {
            Value::Number(_) => Some(msgpack(value)),
            Value::String(text) => text.parse::<i64>().map(rmpv::Value::from).ok(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        },
        "bool" => match value {
            Value::Bool(value) => Some(rmpv::Value::from(*value)),
            Value::String(text) => text.parse::<bool>().map(rmpv::Value::from).ok(),
            Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
        },
        _ => Some(msgpack(value)),
    }
}

/// A value as msgpack, with its own type.
fn msgpack(value: &Value) -> rmpv::Value {
    match value {
        Value::Null => rmpv::Value::Nil,
        Value::Bool(value) => rmpv::Value::from(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => rmpv::Value::from(whole),
            (None, Some(fraction)) => rmpv::Value::from(fraction),
            (None, None) => rmpv::Value::from(number.to_string()),
        },
        Value::String(text) => rmpv::Value::from(text.as_str()),
        Value::Array(items) => rmpv::Value::Array(items.iter().map(msgpack).collect()),
        Value::Object(map) => rmpv::Value::Map(
            map.iter()
                .map(|(key, value)| (rmpv::Value::from(key.as_str()), msgpack(value)))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(name: &str, kind: &str, required: bool) -> hclspec::Spec {
        let attr = hclspec::Attr {
            name: name.into(),
            r#type: kind.into(),
            required,
        };
        hclspec::Spec {
            block: Some(spec::Block::Attr(attr)),
        }
    }

    fn schema() -> hclspec::Spec {
        let literal = hclspec::Spec {
            block: Some(spec::Block::Literal(hclspec::Literal { value: "\"5m\"".into() })),
        };
        let timeout = hclspec::Default {
            primary: Some(Box::new(attr("timeout", "string", false))),
            default: Some(Box::new(literal)),
        };
        let nested = hclspec::Block {
            name: "auth".into(),
            required: false,
            nested: Some(Box::new(hclspec::Spec {
                block: Some(spec::Block::Object(hclspec::Object {
                    attributes: [("username".to_owned(), attr("username", "string", false))].into(),
                })),
            })),
        };
        let attributes = [
            ("image".to_owned(), attr("image", "string", true)),
            ("args".to_owned(), attr("args", "list(string)", false)),
            ("labels".to_owned(), attr("labels", "list(map(string))", false)),
            ("init".to_owned(), attr("init", "bool", false)),
            (
                "timeout".to_owned(),
                hclspec::Spec {
                    block: Some(spec::Block::Default(Box::new(timeout))),
                },
            ),
            (
                "auth".to_owned(),
                hclspec::Spec {
                    block: Some(spec::Block::BlockValue(Box::new(nested))),
                },
            ),
        ];
        hclspec::Spec {
            block: Some(spec::Block::Object(hclspec::Object {
                attributes: attributes.into(),
            })),
        }
    }

    fn encode_text(text: &str) -> Result<rmpv::Value, HclFileError> {
        let source = Source::from_text("job.hcl", text);
        let body = source.parse().unwrap();
        let bytes = encode(&source, &super::super::job_file::task_context(), &body, &schema())?;
        Ok(rmpv::decode::read_value(&mut bytes.as_slice()).unwrap())
    }

    #[test]
    fn every_attribute_of_the_schema_is_sent_and_absent_ones_are_nil() {
        let value = encode_text("image = \"x\"\nargs = [\"a\", 3]\nlabels {\n  k = \"v\"\n}\n").unwrap();
        assert_eq!(value["image"].as_str(), Some("x"));
        assert_eq!(value["args"][1].as_str(), Some("3"));
        assert_eq!(value["labels"][0]["k"].as_str(), Some("v"));
        assert_eq!(value["timeout"].as_str(), Some("5m"));
        assert!(value["init"].is_nil() && value["auth"].is_nil());
    }

    #[test]
    fn variables_that_nomad_sets_are_put_in() {
        let value = encode_text("image = \"x\"\nargs = [\"${NOMAD_TASK_DIR}/f\"]\n").unwrap();
        assert_eq!(value["args"][0].as_str(), Some("/local/f"));
    }

    #[test]
    fn an_unknown_option_a_wrong_type_and_a_missing_one_are_named() {
        let error = encode_text("image = \"x\"\nimagee = 3\n").unwrap_err().to_string();
        assert!(error.contains("job.hcl:2") && error.contains("`imagee`"), "{error}");
        let error = encode_text("image = \"x\"\ninit = [1]\n").unwrap_err().to_string();
        assert!(error.contains("`init`") && error.contains("bool"), "{error}");
        let error = encode_text("init = true\n").unwrap_err().to_string();
        assert!(error.contains("needs `image`"), "{error}");
    }

    #[test]
    fn an_unknown_option_inside_a_block_is_named_with_its_block() {
        let error = encode_text("image = \"x\"\nauth {\n  usernam = \"u\"\n}\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("config > auth") && error.contains("usernam"), "{error}");
    }
}
