//! How many of a prompt's tokens were cached: only the prefill instance knows.
//!
//! A decode instance takes the KV that it pulled for cached, so its own count says nothing. Where an answer has a `usage`,
//! the count of the prefill's answer is put in its place, and all else stays the same bytes.

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memmem};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::request::{Document, Name};

#[derive(Deserialize)]
struct Usage {
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

/// The count in a prefill's answer, if the instance tells.
pub fn cached_tokens(answer: &Document) -> Option<u64> {
    answer
        .read::<Usage>(Name::Usage)?
        .prompt_tokens_details?
        .cached_tokens
}

/// The answer with that count; none if it has no usage.
pub fn put_into_answer(answer: &Bytes, cached_tokens: u64) -> Option<Bytes> {
    let document = Document::scan(answer.clone()).ok()?;
    let mut usage: Map<String, Value> = document.read(Name::Usage)?;
    let details = usage.entry("prompt_tokens_details").or_insert(Value::Null);
    match details {
        Value::Object(details) => {
            details.insert("cached_tokens".to_owned(), Value::from(cached_tokens));
        }
        other => *other = serde_json::json!({"cached_tokens": cached_tokens}),
    }
    let added = format!("\"usage\":{}", Value::Object(usage));
    Some(document.with(&[Name::Usage], &[Bytes::from(added)]).into_bytes())
}

/// A run of whole events with that count in each that has a usage; none if no event has one.
pub fn put_into_events(run: &Bytes, cached_tokens: u64) -> Option<Bytes> {
    // nearly no event has one
    memmem::find(run, b"\"usage\"")?;
    let mut changed = BytesMut::with_capacity(run.len() + 64);
    let mut rest = run.clone();
    while !rest.is_empty() {
        let end = memchr(b'\n', &rest).map_or(rest.len(), |at| at + 1);
        let line = rest.split_to(end);
        match event_with(&line, cached_tokens) {
            Some(event) => {
                changed.extend_from_slice(b"data: ");
                changed.extend_from_slice(&event);
                changed.extend_from_slice(b"\n");
            }
            None => changed.extend_from_slice(&line),
        }
    }
    Some(changed.freeze())
}

/// The data of a line, changed.
fn event_with(line: &Bytes, cached_tokens: u64) -> Option<Bytes> {
    let data = line.strip_prefix(b"data:")?.trim_ascii();
    put_into_answer(&line.slice_ref(data), cached_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn put(answer: &Value) -> Option<Value> {
        let changed = put_into_answer(&bytes(&answer.to_string()), 7)?;
        Some(serde_json::from_slice(&changed).unwrap())
    }

    #[test]
    fn a_prefill_s_count_is_found() {
        let count = |text: &str| cached_tokens(&Document::scan(bytes(text)).unwrap());
        assert_eq!(
            count(r#"{"usage":{"prompt_tokens_details":{"cached_tokens":5}}}"#),
            Some(5)
        );
        for other in [
            "{}",
            r#"{"usage":null}"#,
            r#"{"usage":{"prompt_tokens":5}}"#,
            r#"{"usage":{"prompt_tokens_details":null}}"#,
            r#"{"usage":{"prompt_tokens_details":{"cached_tokens":-5}}}"#,
        ] {
            assert_eq!(count(other), None, "{other}");
        }
    }

    #[test]
    fn an_answer_gets_the_count_and_keeps_all_else() {
        let answer = json!({"id": "i", "usage": {"prompt_tokens": 9}, "choices": [{"text": "\"usage\""}]});
        let mut expected = answer.clone();
        expected["usage"]["prompt_tokens_details"] = json!({"cached_tokens": 7});
        assert_eq!(put(&answer), Some(expected));
        let answer = json!({"usage": {"prompt_tokens_details": {"cached_tokens": 8, "other": 1}}});
        let expected = json!({"usage": {"prompt_tokens_details": {"cached_tokens": 7, "other": 1}}});
        assert_eq!(put(&answer), Some(expected));
        assert_eq!(put(&json!({"usage": null})), None);
        assert_eq!(put(&json!({"choices": []})), None);
    }

    #[test]
    fn only_the_event_with_a_usage_changes() {
        let before = "data: {\"a\":1}\n\ndata: {\"usage\":{\"prompt_tokens\":9}}\r\n\r\ndata: {\"usage\":null}\n\ndata: [DONE]\n\n";
        let after = "data: {\"a\":1}\n\ndata: {\"usage\":{\"prompt_tokens\":9,\"prompt_tokens_details\":{\"cached_tokens\":7}}}\n\r\ndata: {\"usage\":null}\n\ndata: [DONE]\n\n";
        assert_eq!(put_into_events(&bytes(before), 7).unwrap(), after);
        assert_eq!(put_into_events(&bytes("data: {\"a\":1}\n\n"), 7), None);
    }
}
