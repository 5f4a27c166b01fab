//! Going on after `stop_reason: "recomputed"`.
//!
//! A decode instance that runs out of room for KV gives a request back in mid-answer. The proxy then sends the prompt and
//! what was generated so far through both legs again, and the client sees one uninterrupted answer.
//!
//! So the text generated so far has to be known. It is collected as it stands in the events, still escaped for JSON: put
//! behind the prompt's own raw text it makes the longer prompt without a parser in the way of any token.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::{memchr2, memmem};
use serde::Deserialize;
use serde_json::Value;

use crate::request::{Api, CompletionRequest, Name};

/// The longest answer that is kept for going on; a longer one ends with an error should it come to that.
const MAX_TEXT_BYTES: usize = 256 << 10;
/// What the completions API generates if it isn't told how much.
const DEFAULT_MAX_TOKENS: u64 = 16;

static RECOMPUTED: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("recomputed"));
static TEXT: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"text\":"));
static CONTENT: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"content\":"));

/// What was generated so far.
#[derive(Debug, Default)]
pub struct Generated {
    /// The text, escaped as inside a JSON string.
    text: Vec<u8>,
    tokens: u64,
    is_incomplete: bool,
}

impl Generated {
    /// Collects the text of a streamed event. An event is taken for a token.
    pub fn note_event(&mut self, api: Api, data: &[u8]) {
        let finder = match api {
            Api::Completions => &*TEXT,
            Api::Chat => &*CONTENT,
        };
        let Some(text) = finder
            .find(data)
            .and_then(|at| data.get(at + finder.needle().len()..))
            .and_then(raw_string)
        else {
            return;
        };
        if !text.is_empty() {
            self.tokens += 1;
            self.push(text);
        }
    }

    /// Collects the text of a whole answer that gives the request back.
    pub fn note_whole(&mut self, api: Api, answer: &[u8]) {
        let Ok(answer) = serde_json::from_slice::<Value>(answer) else {
            self.is_incomplete = true;
            return;
        };
        let text = answer.pointer(text_pointer(api)).and_then(Value::as_str);
        let tokens = answer.pointer("/usage/completion_tokens").and_then(Value::as_u64);
        let text = text.unwrap_or_default();
        self.note_text(text, tokens.unwrap_or_else(|| u64::from(!text.is_empty())));
    }

    /// The answer to the rest of the request, with what was generated before in front.
    pub fn put_before(&self, api: Api, answer: &Bytes) -> Bytes {
        let (Ok(mut value), Some(mut text)) = (serde_json::from_slice::<Value>(answer), self.text()) else {
            return answer.clone();
        };
        if let Some(rest) = value.pointer_mut(text_pointer(api)) {
            text.push_str(rest.as_str().unwrap_or_default());
            *rest = Value::from(text);
        }
        for (pointer, change) in [
            ("/usage/completion_tokens", i128::from(self.tokens)),
            ("/usage/prompt_tokens", -i128::from(self.tokens)),
        ] {
            if let Some(count) = value.pointer_mut(pointer)
                && let Some(before) = count.as_u64()
            {
                let after = (i128::from(before) + change).max(0);
                *count = Value::from(u64::try_from(after).unwrap_or(u64::MAX));
            }
        }
        Bytes::from(value.to_string())
    }

    fn note_text(&mut self, text: &str, tokens: u64) {
        self.tokens += tokens;
        match serde_json::to_vec(text) {
            Ok(quoted) => self.push(quoted.get(1..quoted.len() - 1).unwrap_or_default()),
            Err(_) => self.is_incomplete = true,
        }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The text so far.
    pub fn text(&self) -> Option<String> {
        serde_json::from_slice(&[b"\"", &self.text[..], b"\""].concat()).ok()
    }

    fn push(&mut self, text: &[u8]) {
        if self.text.len() + text.len() > MAX_TEXT_BYTES {
            self.is_incomplete = true;
        } else {
            self.text.extend_from_slice(text);
        }
    }
}

/// Where an answer has its text.
fn text_pointer(api: Api) -> &'static str {
    match api {
        Api::Completions => "/choices/0/text",
        Api::Chat => "/choices/0/message/content",
    }
}

/// The inside of the JSON string that the text begins with.
fn raw_string(text: &[u8]) -> Option<&[u8]> {
    let inside = text.trim_ascii_start().strip_prefix(b"\"")?;
    let mut end = 0;
    loop {
        end += memchr2(b'"', b'\\', inside.get(end..)?)?;
        if inside.get(end) == Some(&b'"') {
            return inside.get(..end);
        }
        // whatever is escaped is one byte at least, and never what ends the string
        end += 2;
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    stop_reason: Value,
}

/// Whether an event or a whole answer gives the request back.
pub fn is_recomputed(json: &[u8]) -> bool {
    // nearly no answer has the word at all, so nearly none is parsed
    RECOMPUTED.find(json).is_some()
        && serde_json::from_slice::<Answer>(json).is_ok_and(|answer| {
            answer
                .choices
                .iter()
                .any(|choice| choice.stop_reason == "recomputed")
        })
}

/// The request for the rest of an answer, or why there can be none.
pub fn rest_of(request: &CompletionRequest, generated: &Generated) -> Result<CompletionRequest, String> {
    if generated.tokens == 0 {
        return Ok(request.clone());
    }
    if generated.is_incomplete {
        return Err("the answer so far is too long to be computed again".to_owned());
    }
    let document = &request.document;
    if document.read::<u64>(Name::N).is_some_and(|n| n > 1) {
        return Err("a request for several answers can't be computed again".to_owned());
    }
    let prompt = document
        .value(request.api.prompt())
        .unwrap_or_default()
        .trim_ascii();
    let mut added = Vec::new();
    match request.api {
        Api::Completions => {
            let text = prompt
                .strip_suffix(b"\"")
                .filter(|text| text.first() == Some(&b'"'))
                .ok_or("a prompt of token ids can't be computed again")?;
            added.extend_from_slice(b"\"prompt\":");
            added.extend_from_slice(text);
            added.extend_from_slice(&generated.text);
            added.push(b'"');
        }
        Api::Chat => {
            let messages = prompt
                .strip_suffix(b"]")
                .ok_or("messages that are no list can't be computed again")?
                .trim_ascii_end();
            added.extend_from_slice(b"\"messages\":");
            added.extend_from_slice(messages);
            let separator: &[u8] = if messages.len() > 1 { b"," } else { b"" };
            added.extend_from_slice(separator);
            added.extend_from_slice(br#"{"role":"assistant","content":""#);
            added.extend_from_slice(&generated.text);
            added.extend_from_slice(br#""}],"add_generation_prompt":false,"continue_final_message":true"#);
        }
    }
    for (name, key) in [
        (Name::MaxTokens, "max_tokens"),
        (Name::MaxCompletionTokens, "max_completion_tokens"),
    ] {
        let asked = document.read::<u64>(name);
        let is_default = name == Name::MaxTokens && request.api == Api::Completions;
        if let Some(most) = asked.or(is_default.then_some(DEFAULT_MAX_TOKENS)) {
            let rest = most.saturating_sub(generated.tokens).max(1);
            added.extend_from_slice(format!(",\"{key}\":{rest}").as_bytes());
        }
    }
    if let Some(least) = document.read::<u64>(Name::MinTokens) {
        let rest = least.saturating_sub(generated.tokens);
        added.extend_from_slice(format!(",\"min_tokens\":{rest}").as_bytes());
    }
    let cut = [
        request.api.prompt(),
        Name::MaxTokens,
        Name::MaxCompletionTokens,
        Name::MinTokens,
        Name::AddGenerationPrompt,
        Name::ContinueFinalMessage,
    ];
    let body = document.with(&cut, &[Bytes::from(added)]).into_bytes();
    CompletionRequest::parse(request.api, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(api: Api, body: &Value) -> CompletionRequest {
        CompletionRequest::parse(api, Bytes::from(body.to_string())).unwrap()
    }

    fn body(request: &CompletionRequest) -> Value {
        serde_json::from_slice(request.document.body()).unwrap()
    }

    #[test]
    fn text_is_collected_as_it_is_escaped() {
        let mut generated = Generated::default();
        for text in ["Hello", "", " \"wor\\ld\"\n", "ü€\u{1F600}", "\"text\":\"no\""] {
            let event = json!({"choices": [{"index": 0, "text": text, "stop_reason": null}]});
            generated.note_event(Api::Completions, event.to_string().as_bytes());
        }
        generated.note_event(Api::Completions, br#"{"choices":[{"text": "\u0041"}]}"#);
        generated.note_event(Api::Completions, br#"{"choices":[],"usage":{}}"#);
        generated.note_event(Api::Completions, br#"{"choices":[{"text":"torn"#);
        generated.note_event(Api::Completions, b"[DONE]");
        assert_eq!(
            generated.text().unwrap(),
            "Hello \"wor\\ld\"\nü€\u{1F600}\"text\":\"no\"A"
        );
        assert_eq!(generated.tokens(), 5, "an empty text is no token");
    }

    #[test]
    fn chat_collects_content_only() {
        let mut generated = Generated::default();
        for event in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":null}}]}"#,
            r#"{"choices":[{"delta":{"content":"Yes"},"logprobs":{"content":[{"token":"x"}]}}]}"#,
        ] {
            generated.note_event(Api::Chat, event.as_bytes());
        }
        assert_eq!(
            (generated.text().unwrap().as_str(), generated.tokens()),
            ("Yes", 1)
        );
    }

    #[test]
    fn only_the_stop_reason_gives_a_request_back() {
        assert!(is_recomputed(
            br#"{"choices":[{"stop_reason":"recomputed","text":""}]}"#
        ));
        for other in [
            r#"{"choices":[{"stop_reason":null,"text":"recomputed"}]}"#,
            r#"{"choices":[{"stop_reason":13}]}"#,
            r#"{"choices":[{"text":"\"stop_reason\":\"recomputed\""}]}"#,
            "recomputed",
        ] {
            assert!(!is_recomputed(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_completion_goes_on_behind_its_prompt() {
        let original =
            json!({"model": "m", "prompt": "Say \"a\": ", "max_tokens": 10, "min_tokens": 4, "stream": true});
        let request = request(Api::Completions, &original);
        assert_eq!(body(&rest_of(&request, &Generated::default()).unwrap()), original);
        let mut generated = Generated::default();
        generated.note_text("\"b\"\n", 3);
        assert_eq!(
            body(&rest_of(&request, &generated).unwrap()),
            json!({"model": "m", "prompt": "Say \"a\": \"b\"\n", "max_tokens": 7, "min_tokens": 1, "stream": true})
        );
        generated.note_text("x", 99);
        assert_eq!(body(&rest_of(&request, &generated).unwrap())["max_tokens"], 1);
    }

    #[test]
    fn a_completion_without_a_limit_keeps_the_default() {
        let mut generated = Generated::default();
        generated.note_text("b", 6);
        let rest = rest_of(&request(Api::Completions, &json!({"prompt": "a"})), &generated).unwrap();
        assert_eq!(body(&rest), json!({"prompt": "ab", "max_tokens": 10}));
    }

    #[test]
    fn a_chat_goes_on_in_the_assistant_s_message() {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let request = request(
            Api::Chat,
            &json!({"messages": messages, "max_completion_tokens": 9}),
        );
        let mut generated = Generated::default();
        generated.note_text("Ho", 2);
        assert_eq!(
            body(&rest_of(&request, &generated).unwrap()),
            json!({
                "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
                "add_generation_prompt": false, "continue_final_message": true, "max_completion_tokens": 7,
            })
        );
    }

    #[test]
    fn a_whole_answer_gets_what_was_generated_before() {
        for (api, first, rest, expected) in [
            (
                Api::Completions,
                json!({"choices": [{"text": "ab", "stop_reason": "recomputed"}], "usage": {"completion_tokens": 2}}),
                json!({"choices": [{"text": "c"}],
                       "usage": {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}}),
                json!({"choices": [{"text": "abc"}],
                       "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}}),
            ),
            (
                Api::Chat,
                json!({"choices": [{"message": {"content": "ab"}, "stop_reason": "recomputed"}]}),
                json!({"choices": [{"message": {"content": "c"}}]}),
                json!({"choices": [{"message": {"content": "abc"}}]}),
            ),
        ] {
            let mut generated = Generated::default();
            generated.note_whole(api, first.to_string().as_bytes());
            let merged = generated.put_before(api, &Bytes::from(rest.to_string()));
            assert_eq!(serde_json::from_slice::<Value>(&merged).unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_go_on_says_why() {
        let mut generated = Generated::default();
        generated.note_text("b", 1);
        for (original, word) in [
            (json!({"prompt": [1, 2]}), "token ids"),
            (json!({"prompt": "a", "n": 2}), "several"),
        ] {
            let error = rest_of(&request(Api::Completions, &original), &generated).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        generated.note_text(&"x".repeat(MAX_TEXT_BYTES), 1);
        let error = rest_of(&request(Api::Completions, &json!({"prompt": "a"})), &generated).unwrap_err();
        assert!(error.contains("too long"), "{error}");
    }
}
