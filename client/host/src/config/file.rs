//! Reading a configuration file: our own keys, UCM's, or both, each value checked by itself.

use std::fmt;
use std::path::Path;

use kvstored_core::{Error, Result};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::options::ServeOptions;
use super::suggest::closest;
use super::ucm::{CONNECTOR_NAME, NO_EFFECT, UcmConnector, UcmConnectorConfig, UcmTopLevel};
use super::yaml::{self, Content, Node};

/// What is wrong with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nobody knows the key: a warning at start-up, a failure of `check-config`.
    Unknown,
    /// The value can't be used: a failure everywhere.
    Wrong,
}

/// One finding about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Path of the key, e.g. `ucm_connectors[0].ucm_connector_config.storage_backends`.
    pub key: String,
    /// Line in the file, from 1; 0 where it can't be told.
    pub line: u64,
    /// The value as compact JSON, shortened.
    pub value: String,
    /// What is wrong, and where it can be told, what was meant.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(formatter, "line {}: ", self.line)?;
        }
        write!(formatter, "{}", self.key)?;
        if !self.value.is_empty() {
            write!(formatter, " = {}", self.value)?;
        }
        write!(formatter, ": {}", self.message)
    }
}

/// A key that is accepted, and what its user should know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Path of the key.
    pub key: String,
    /// Line in the file.
    pub line: u64,
    /// What to know.
    pub message: String,
}

/// What a file says.
#[derive(Clone, Debug, Default)]
pub struct FileReport {
    /// The settings that could be used.
    pub options: ServeOptions,
    /// UCM's `block_size`, in bytes: the cache has to hold at least one.
    pub block_bytes: Option<u64>,
    /// Everything that is wrong, in the file's order.
    pub problems: Vec<Problem>,
    /// Keys that are accepted but change nothing, or mean something a little different here.
    pub remarks: Vec<Remark>,
    /// UCM's keys that could be used, by their plain names: some concern the engine's connector, which asks for them.
    pub ucm_keys: Map<String, Value>,
    lines: Vec<(String, u64)>,
}

impl FileReport {
    /// Reads a file. Fails when it can't be read or isn't YAML; anything wrong with single keys is in the report.
    pub fn read(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map(|metadata| metadata.len());
        if length.is_ok_and(|length| length > yaml::MAX_FILE_BYTES as u64) {
            return Err(Error::invalid(format!(
                "the configuration file is larger than {} bytes",
                yaml::MAX_FILE_BYTES
            )));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::from_io(error, "the configuration file can't be read"))?;
        Self::parse(&text)
    }

    /// Reads a document.
    pub fn parse(text: &str) -> Result<Self> {
        let root = yaml::parse(text)?;
        let Some(entries) = root.entries() else {
            return Err(Error::invalid(
                "the configuration is not a mapping of keys to values",
            ));
        };
        let mut report = Self::default();
        let mut ours = Section::<ServeOptions>::new("");
        let mut theirs = Section::<UcmTopLevel>::new("");
        let mut adopted = ServeOptions::default();
        for (key, line, node) in entries {
            if key == "ucm_connectors" {
                adopted = report.connectors(key, node);
            } else if ours.knows(key) {
                ours.take(&mut report, key, *line, node);
            } else if theirs.knows(key) {
                theirs.take(&mut report, key, *line, node);
            } else {
                let belongs = known_keys::<UcmConnectorConfig>()
                    .contains(key)
                    .then_some("ucm_connector_config");
                let known = [ours.known.as_slice(), theirs.known.as_slice()].concat();
                report.unknown(key.clone(), key, *line, node, &known, belongs);
            }
        }
        report.ucm_keys.extend(theirs.accepted);
        // a key of ours says more exactly what is wanted than one that was written for another program
        report.options = ours.finish().over(adopted);
        Ok(report)
    }

    /// The line of the key with that name, wherever it stands; 0 if it's not in the file.
    pub fn line_of(&self, name: &str) -> u64 {
        let stands = |path: &str| path == name || path.ends_with(&format!(".{name}"));
        self.lines
            .iter()
            .find(|(path, _)| stands(path))
            .map_or(0, |(_, line)| *line)
    }

    fn connectors(&mut self, path: &str, node: &Node) -> ServeOptions {
        let nodes = match &node.content {
            Content::List(nodes) if !nodes.is_empty() => nodes,
            _ => {
                self.wrong(
                    path.to_owned(),
                    node.line,
                    node,
                    "expected a list with one connector".into(),
                );
                return ServeOptions::default();
            }
        };
        for (index, extra) in nodes.iter().enumerate().skip(1) {
            self.remark(
                format!("{path}[{index}]"),
                extra.line,
                "only the first connector is used".into(),
            );
        }
        let path = format!("{path}[0]");
        let Some((connector, entries)) = nodes.first().and_then(|first| Some((first, first.entries()?)))
        else {
            self.wrong(path, node.line, node, "expected a mapping".into());
            return ServeOptions::default();
        };
        let mut section = Section::<UcmConnector>::new(&format!("{path}."));
        let mut config = UcmConnectorConfig::default();
        for (key, line, value) in entries {
            if key == "ucm_connector_config" {
                config = self.connector_config(&format!("{path}.{key}"), value);
            } else if section.knows(key) {
                section.take(self, key, *line, value);
            } else {
                let belongs = known_keys::<UcmConnectorConfig>()
                    .contains(key)
                    .then_some("ucm_connector_config");
                let known = section.known.clone();
                self.unknown(format!("{path}.{key}"), key, *line, value, &known, belongs);
            }
        }
        let name = section.finish().ucm_connector_name;
        if name.as_deref() != Some(CONNECTOR_NAME) {
            let place = entries
                .iter()
                .find(|(key, ..)| key == "ucm_connector_name")
                .map_or(connector, |entry| &entry.2);
            let message = format!("the connector's name must be {CONNECTOR_NAME}");
            self.wrong(format!("{path}.ucm_connector_name"), place.line, place, message);
        }
        self.block_bytes = config.block_size.filter(|bytes| *bytes > 0);
        let (options, remarks) = config.adopt();
        for (key, message) in remarks {
            let line = self.line_of(key);
            self.remark(format!("{path}.ucm_connector_config.{key}"), line, message);
        }
        options
    }

    fn connector_config(&mut self, path: &str, node: &Node) -> UcmConnectorConfig {
        let Some(entries) = node.entries() else {
            if !node.is_null() {
                self.wrong(
                    path.to_owned(),
                    node.line,
                    node,
                    "expected a mapping of keys to values".into(),
                );
            }
            return UcmConnectorConfig::default();
        };
        let mut section = Section::<UcmConnectorConfig>::new(&format!("{path}."));
        for (key, line, value) in entries {
            if section.knows(key) {
                section.take(self, key, *line, value);
            } else {
                let belongs = known_keys::<ServeOptions>()
                    .contains(key)
                    .then_some("the top level of the file");
                let known = section.known.clone();
                self.unknown(format!("{path}.{key}"), key, *line, value, &known, belongs);
            }
        }
        self.ucm_keys.extend(section.accepted.clone());
        section.finish()
    }

    fn unknown(
        &mut self,
        path: String,
        key: &str,
        line: u64,
        node: &Node,
        known: &[String],
        belongs: Option<&str>,
    ) {
        let message = match (belongs, closest(key, known.iter().map(String::as_str))) {
            (Some(place), _) => format!("unknown here; it belongs in {place}"),
            (None, Some(meant)) => format!("unknown key; did you mean {meant}?"),
            (None, None) => "unknown key".to_owned(),
        };
        self.problems.push(Problem {
            severity: Severity::Unknown,
            key: path,
            line,
            value: shown(node),
            message,
        });
    }

    fn wrong(&mut self, key: String, line: u64, node: &Node, message: String) {
        self.problems.push(Problem {
            severity: Severity::Wrong,
            key,
            line,
            value: shown(node),
            message,
        });
    }

    fn remark(&mut self, key: String, line: u64, message: String) {
        self.remarks.push(Remark { key, line, message });
    }
}

/// The keys of one mapping that fit `T`, each checked by itself so that every wrong one is told.
struct Section<T> {
    prefix: String,
    known: Vec<String>,
    accepted: Map<String, Value>,
    _type: std::marker::PhantomData<T>,
}

impl<T: DeserializeOwned + Default + JsonSchema> Section<T> {
    fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            known: known_keys::<T>(),
            accepted: Map::new(),
            _type: std::marker::PhantomData,
        }
    }

    fn knows(&self, key: &str) -> bool {
        self.known.iter().any(|known| known == key)
    }

    fn take(&mut self, report: &mut FileReport, key: &str, line: u64, node: &Node) {
        let path = format!("{}{key}", self.prefix);
        report.lines.push((path.clone(), line));
        if node.is_null() {
            return;
        }
        if let Some((_, why)) = NO_EFFECT.iter().find(|(name, _)| *name == key) {
            report.remark(path.clone(), line, format!("accepted without effect: {why}"));
        }
        let value = node.to_value();
        let alone: Map<String, Value> = [(key.to_owned(), value.clone())].into_iter().collect();
        match serde_json::from_value::<T>(Value::Object(alone)) {
            Ok(_) => {
                self.accepted.insert(key.to_owned(), value);
            }
            Err(error) => report.wrong(path, line, node, error.to_string()),
        }
    }

    fn finish(self) -> T {
        serde_json::from_value(Value::Object(self.accepted)).unwrap_or_default()
    }
}

/// The keys that a type of settings has, by its schema.
pub fn known_keys<T: JsonSchema>() -> Vec<String> {
    let schema = schemars::schema_for!(T);
    let properties = schema.as_value().get("properties").and_then(Value::as_object);
    properties
        .map(|map| map.keys().cloned().collect())
        .unwrap_or_default()
}

/// A value for a message.
fn shown(node: &Node) -> String {
    const MOST: usize = 80;
    let text = node.to_value().to_string();
    if text.chars().count() <= MOST {
        text
    } else {
        text.chars().take(MOST).chain("…".chars()).collect()
    }
}
