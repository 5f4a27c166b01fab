//! YAML in, a plain tree with line numbers out. The one place that knows the YAML library.

use std::fmt;

use kvstored_core::{Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

/// Largest configuration file that is read.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// A node of the document and the line it begins on (0 where the library can't tell).
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub content: Content,
    /// Line in the file, from 1.
    pub line: u64,
}

/// The kinds of nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A null, a boolean, a number or a string.
    Scalar(Value),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the file's order; each key with its line.
    Map(Vec<(String, u64, Node)>),
}

impl Node {
    /// The entries of a mapping: key, the key's line, value.
    pub fn entries(&self) -> Option<&[(String, u64, Node)]> {
        match &self.content {
            Content::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The same without line numbers.
    pub fn to_value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(nodes) => Value::Array(nodes.iter().map(Node::to_value).collect()),
            Content::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, _, node)| (key.clone(), node.to_value()))
                    .collect(),
            ),
        }
    }

    /// Whether it's a null, which means the same as leaving the key out.
    pub fn is_null(&self) -> bool {
        self.content == Content::Scalar(Value::Null)
    }
}

/// Parses a document. An empty one is an empty mapping. Fails with `InvalidInput`, naming the line.
pub fn parse(text: &str) -> Result<Node> {
    if text.len() > MAX_FILE_BYTES {
        return Err(Error::invalid(format!(
            "the configuration has {} bytes; at most {MAX_FILE_BYTES} are read",
            text.len()
        )));
    }
    let empty = Node {
        content: Content::Map(Vec::new()),
        line: 1,
    };
    let options = serde_saphyr::options! { with_snippet: false };
    match serde_saphyr::from_str_with_options::<Option<Node>>(text, options) {
        Ok(Some(node)) if !node.is_null() => Ok(node),
        Ok(_) => Ok(empty),
        Err(error) => Err(Error::invalid(format!("not valid YAML: {error}"))),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            content: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        // infinities have no JSON form; as text they fail wherever a number is wanted
        let scalar = serde_json::Number::from_f64(value)
            .map_or_else(|| Value::String(value.to_string()), Value::Number);
        Ok(Content::Scalar(scalar))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(Value::String(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Content, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = sequence.next_element()? {
            nodes.push(node);
        }
        Ok(Content::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = map.next_entry::<Spanned<String>, Node>()? {
            entries.push((key.value, key.referenced.line(), node));
        }
        Ok(Content::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_type_and_line() {
        let node = parse("a: 1\nb:\n  - c: \"x:y\"\n    d: -0.5\ne: true\nf:\n").unwrap();
        assert_eq!(
            node.to_value(),
            serde_json::json!({"a": 1, "b": [{"c": "x:y", "d": -0.5}], "e": true, "f": null})
        );
        let lines: Vec<(&str, u64)> = node
            .entries()
            .unwrap()
            .iter()
            .map(|(key, line, _)| (key.as_str(), *line))
            .collect();
        assert_eq!(lines, [("a", 1), ("b", 2), ("e", 5), ("f", 6)]);
    }

    #[test]
    fn an_empty_document_is_an_empty_mapping() {
        for text in ["", "# nothing\n", "---\n", "{}"] {
            assert_eq!(
                parse(text).unwrap().entries().map(<[_]>::len),
                Some(0),
                "{text:?}"
            );
        }
    }

    #[test]
    fn broken_yaml_names_its_line() {
        for (text, word) in [
            ("a: 1\nb: [1, 2\nc: 3\n", "line"),
            ("a: 1\na: 2\n", "duplicate"),
            ("b: 1\na: *nope\n", "unknown anchor at line 2"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.contains("not valid YAML") && error.to_lowercase().contains(word),
                "{error}"
            );
        }
    }

    #[test]
    fn hostile_documents_are_refused_not_followed() {
        assert!(parse(&"[".repeat(20_000)).is_err());
        assert!(
            parse(&"a".repeat(MAX_FILE_BYTES + 1))
                .unwrap_err()
                .to_string()
                .contains("at most")
        );
        let level = |level: usize| {
            format!(
                "x{level}: &x{level} [{}]\n",
                vec![format!("*x{}", level - 1); 10].join(",")
            )
        };
        let bomb = "x0: &x0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned() + &(1..20).map(level).collect::<String>();
        assert!(parse(&bomb).is_err(), "aliases must not multiply without bound");
    }
}
