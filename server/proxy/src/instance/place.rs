//! Where a prefill instance's prompts can be followed while they are computed: what it said of itself.
//!
//! An instance whose connector allows that says so in the parameters of its answers. They name the engine, which is another
//! after each start: what was learnt before leads to nobody then, and the answer tells the new name.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::value::RawValue;

/// What an instance says that can be followed.
const OVERLAPS: &str = "kvstored_overlap";
/// What doesn't change from one prompt to the next.
const LASTING: [&str; 6] = [
    "remote_engine_id",
    "remote_host",
    "remote_port",
    "remote_ptp_size",
    "remote_pp_size",
    "remote_block_size",
];

/// See the module's page.
#[derive(Debug, Default)]
pub struct Place {
    /// The lasting parameters as JSON, without braces.
    known: Mutex<Option<String>>,
}

impl Place {
    /// Learns from the parameters of an answer.
    pub fn learn(&self, transfer: &[u8]) {
        let lasting = lasting(transfer);
        let mut known = self.known.lock();
        if *known != lasting {
            *known = lasting;
        }
    }

    /// Forgets it: the instance may have ended.
    pub fn forget(&self) {
        *self.known.lock() = None;
    }

    /// Parameters with which a decode instance follows the prompt of that name. None where it can't.
    pub fn transfer(&self, name: &str) -> Option<Bytes> {
        let known = self.known.lock();
        let lasting = known.as_deref()?;
        Some(Bytes::from(format!(
            r#"{{"do_remote_prefill":true,"do_remote_decode":false,"kvstored_transfer":"{name}",{lasting}}}"#
        )))
    }

    /// Whether an answer's parameters keep the prompt of that name where it was followed.
    pub fn is_kept_as(&self, transfer: &[u8], name: &str) -> bool {
        let request = serde_json::from_slice::<HashMap<String, &RawValue>>(transfer).ok();
        let request =
            request.and_then(|fields| serde_json::from_str(fields.get("remote_request_id")?.get()).ok());
        let request: String = request.unwrap_or_default();
        // the prompt's digest follows
        let is_named = request
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(':'));
        is_named && *self.known.lock() == lasting(transfer)
    }
}

fn lasting(transfer: &[u8]) -> Option<String> {
    let fields: HashMap<String, &RawValue> = serde_json::from_slice(transfer).ok()?;
    if fields.get(OVERLAPS).is_none_or(|value| value.get() != "true") {
        return None;
    }
    let field = |name: &str| {
        let value = fields.get(name).filter(|value| value.get() != "null")?;
        Some(format!("\"{name}\":{}", value.get()))
    };
    let all: Option<Vec<String>> = LASTING.into_iter().map(field).collect();
    Some(all?.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn answer(engine: &str) -> Value {
        json!({
            "kvstored_overlap": true, "remote_engine_id": engine, "remote_host": "p\"1", "remote_port": 7, "remote_ptp_size": 2,
            "remote_pp_size": 1, "remote_block_size": 128, "remote_request_id": "name:1234", "remote_block_ids": [1],
        })
    }

    #[test]
    fn what_lasts_is_said_again_under_another_name() {
        let place = Place::default();
        assert_eq!(place.transfer("name"), None);
        place.learn(answer("e").to_string().as_bytes());
        let said: Value = serde_json::from_slice(&place.transfer("other").unwrap()).unwrap();
        assert_eq!(
            said,
            json!({
                "do_remote_prefill": true, "do_remote_decode": false, "kvstored_transfer": "other", "remote_engine_id": "e",
                "remote_host": "p\"1", "remote_port": 7, "remote_ptp_size": 2, "remote_pp_size": 1, "remote_block_size": 128,
            })
        );
        place.forget();
        assert_eq!(place.transfer("name"), None);
    }

    #[test]
    fn only_the_same_engine_keeps_what_was_followed() {
        let place = Place::default();
        place.learn(answer("e").to_string().as_bytes());
        let kept = |answer: &Value, name: &str| place.is_kept_as(answer.to_string().as_bytes(), name);
        assert!(kept(&answer("e"), "name"));
        assert!(!kept(&answer("e"), "nam") && !kept(&answer("e"), "name:"));
        assert!(!kept(&answer("restarted"), "name"));
    }

    #[test]
    fn one_that_cannot_be_followed_is_not() {
        for (field, value) in [
            ("kvstored_overlap", json!(false)),
            ("kvstored_overlap", json!("true")),
            ("remote_engine_id", Value::Null),
            ("remote_port", Value::Null),
        ] {
            let place = Place::default();
            place.learn(answer("e").to_string().as_bytes());
            let mut other = answer("e");
            other[field] = value;
            place.learn(other.to_string().as_bytes());
            assert_eq!(place.transfer("name"), None, "{field}");
        }
        let place = Place::default();
        place.learn(b"[]");
        assert_eq!(place.transfer("name"), None);
    }
}
