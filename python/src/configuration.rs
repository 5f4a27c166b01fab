//! Settings of an embedded engine as Python gives them, and checking of configuration files.

use std::path::{Path, PathBuf};

use kvstored_core::{Error, Result};
use kvstored_host::config::file::known_keys;
use kvstored_host::config::ucm::{CONNECTOR_NAME, UcmConnectorConfig};
use kvstored_host::config::{
    Environment, FileReport, Problem, Remark, ServeOptions, ServeSettings, Severity,
};
use pyo3::prelude::*;
use serde_json::{Map, Value, json};

use crate::failure::Outcome;

/// Settings of an engine, and what its user should be told about where they came from.
pub struct Resolved {
    pub settings: ServeSettings,
    /// Keys that nobody knows.
    pub warnings: Vec<String>,
    /// Keys that are accepted but mean something a little different here.
    pub remarks: Vec<String>,
}

/// Puts options (a JSON object) over a configuration file over the defaults. Fails with `InvalidInput`, naming every
/// key that is wrong with its value.
pub fn resolve(options: Option<&str>, file: Option<&Path>) -> Result<Resolved> {
    let mut over = match options {
        Some(text) => FileReport::parse(&adopted(text)?)?,
        None => FileReport::default(),
    };
    // one line of JSON has no lines to speak of
    over.problems.iter_mut().for_each(|problem| problem.line = 0);
    over.remarks.iter_mut().for_each(|remark| remark.line = 0);
    let mut below = match file {
        Some(path) => FileReport::read(path).map_err(|error| error.with("file", path.display()))?,
        None => FileReport::default(),
    };
    let (mut wrong, unknown): (Vec<Problem>, Vec<Problem>) = over
        .problems
        .drain(..)
        .chain(below.problems.drain(..))
        .partition(|problem| problem.severity == Severity::Wrong);
    below.block_bytes = over.block_bytes.or(below.block_bytes);
    let resolved = ServeSettings::resolve(over.options, &below, &Environment::current());
    let settings = match resolved {
        Ok(settings) if wrong.is_empty() => settings,
        resolved => {
            wrong.extend(resolved.err().unwrap_or_default());
            let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            let error = Error::invalid(all.join("; "));
            return Err(match file {
                Some(path) if wrong.iter().any(|problem| problem.line > 0) => {
                    error.with("file", path.display())
                }
                _ => error,
            });
        }
    };
    let remarks = over.remarks.iter().chain(&below.remarks);
    Ok(Resolved {
        warnings: unknown.iter().map(ToString::to_string).collect(),
        remarks: remarks
            .map(|remark| format!("{}: {}", remark.key, remark.message))
            .chain(settings.notes.iter().cloned())
            .collect(),
        settings,
    })
}

/// Options with UCM's keys, which its file has further down, where that file has them.
fn adopted(text: &str) -> Result<String> {
    let wrong = |error: serde_json::Error| Error::invalid(format!("the options can't be read: {error}"));
    let mut options: Map<String, Value> = serde_json::from_str(text).map_err(wrong)?;
    if options.contains_key("ucm_connectors") {
        return Ok(text.to_owned());
    }
    let own = known_keys::<ServeOptions>();
    let mut connector = Map::new();
    for key in known_keys::<UcmConnectorConfig>() {
        if !own.contains(&key)
            && let Some(value) = options.remove(&key)
        {
            connector.insert(key, value);
        }
    }
    if !connector.is_empty() {
        let connector = json!({"ucm_connector_name": CONNECTOR_NAME, "ucm_connector_config": connector});
        options.insert("ucm_connectors".to_owned(), json!([connector]));
    }
    serde_json::to_string(&options).map_err(wrong)
}

/// The socket that `unix:PATH` or a path names.
pub fn socket(listen: &str) -> Result<PathBuf> {
    let path = listen.strip_prefix("unix:").unwrap_or(listen);
    if path.is_empty() {
        return Err(Error::invalid(format!(
            "\"{listen}\" names no socket; unix:PATH does"
        )));
    }
    Ok(path.into())
}

/// Where a daemon listens by default.
#[pyfunction]
pub fn default_socket() -> PathBuf {
    Environment::current().default_socket()
}

/// Checks the text of a configuration file and tells what is in it, as JSON.
#[pyfunction]
pub fn check_configuration(py: Python<'_>, text: &str) -> Outcome<String> {
    Ok(py.detach(|| check(text))?.to_string())
}

fn check(text: &str) -> Result<Value> {
    let report = FileReport::parse(text)?;
    let resolved = ServeSettings::resolve(ServeOptions::default(), &report, &Environment::current());
    let (settings, more) = match resolved {
        Ok(settings) => {
            let rows = settings.rows().into_iter();
            let rows: Map<String, Value> = rows
                .map(|(name, value, _)| (name.to_owned(), value.into()))
                .collect();
            (Value::Object(rows), Vec::new())
        }
        Err(problems) => (Value::Null, problems),
    };
    let problems: Vec<Value> = report.problems.iter().chain(&more).map(problem).collect();
    let remarks: Vec<Value> = report.remarks.iter().map(remark).collect();
    Ok(json!({
        "options": given(&report.options)?,
        "settings": settings,
        "problems": problems,
        "remarks": remarks,
        "connector": connector(text)?,
    }))
}

fn problem(problem: &Problem) -> Value {
    json!({
        "key": problem.key,
        "line": problem.line,
        "value": problem.value,
        "message": problem.message,
        "unknown": problem.severity == Severity::Unknown,
    })
}

fn remark(remark: &Remark) -> Value {
    json!({"key": remark.key, "line": remark.line, "message": remark.message})
}

/// Options that were given, whoever's keys they were given with.
fn given(options: &ServeOptions) -> Result<Value> {
    let unreadable = |error: serde_json::Error| Error::internal(format!("options can't be told: {error}"));
    let mut value = serde_json::to_value(options).map_err(unreadable)?;
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, value| !value.is_null() && *value != json!({}));
    }
    Ok(value)
}

/// UCM's own keys by their plain names: those of the first connector over those at the file's top.
fn connector(text: &str) -> Result<Value> {
    let unreadable = |error| Error::invalid(format!("not valid YAML: {error}"));
    let file: Option<Value> = serde_saphyr::from_str(text).map_err(unreadable)?;
    let mut keys: Map<String, Value> = ["enable_event_sync", "use_layerwise", "load_only_first_rank"]
        .iter()
        .map(|key| ((*key).to_owned(), Value::Null))
        .collect();
    let Some(Value::Object(top)) = file else {
        return Ok(Value::Object(keys));
    };
    let first = top.get("ucm_connectors").and_then(|connectors| connectors.get(0));
    let configuration = first.and_then(|first| first.get("ucm_connector_config"));
    for section in [Some(&Value::Object(top.clone())), first, configuration] {
        for (key, value) in section.and_then(Value::as_object).into_iter().flatten() {
            if key != "ucm_connectors" && key != "ucm_connector_config" {
                keys.insert(key.clone(), value.clone());
            }
        }
    }
    Ok(Value::Object(keys))
}
