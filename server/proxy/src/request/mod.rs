//! A completion request, and the bodies of its two legs.

mod document;
mod pieces;

use bytes::Bytes;
use serde_json::value::RawValue;
use std::collections::HashMap;

use crate::affinity::PrefixChain;
use crate::choice::BYTES_PER_TOKEN;

pub use document::{Document, Name};
pub use pieces::Pieces;

/// The parameters that ask a prefill instance to keep the prompt's KV for a decode instance.
const KEEP_FOR_DECODE: &[u8] = br#""kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null"#;
/// The rest of what is said to a prefill instance.
const ONE_TOKEN: &[u8] = br#"},"stream":false,"max_tokens":1,"min_tokens":1"#;
/// Fields of the client's request that the prefill leg must not have.
const NOT_FOR_PREFILL: [Name; 9] = [
    Name::KvTransferParams,
    Name::Stream,
    Name::StreamOptions,
    Name::MaxTokens,
    Name::MaxCompletionTokens,
    Name::MinTokens,
    // each of several answers would keep the prompt's KV
    Name::N,
    Name::BestOf,
    Name::UseBeamSearch,
];

/// Which completion API a request uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`.
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

impl Api {
    /// The path, here and at the instances.
    pub fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }

    /// The API's name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completions => "completions",
            Self::Chat => "chat",
        }
    }

    /// The field with the prompt.
    pub fn prompt(self) -> Name {
        match self {
            Self::Completions => Name::Prompt,
            Self::Chat => Name::Messages,
        }
    }
}

/// See the module's page.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// Its API.
    pub api: Api,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// The prompt's length in tokens, estimated.
    pub tokens: u64,
    /// The prompt's chunks.
    pub chain: PrefixChain,
    /// The body.
    pub document: Document,
}

impl CompletionRequest {
    /// Reads a body. An error is a sentence for the client.
    pub fn parse(api: Api, body: Bytes) -> Result<Self, String> {
        let document =
            Document::scan(body).map_err(|error| format!("the body is not a JSON object: {error}"))?;
        let stream = match document.value(Name::Stream) {
            None | Some(b"null") => false,
            Some(_) => document
                .read(Name::Stream)
                .ok_or("the field stream has to be true or false")?,
        };
        refuse_hidden_transfer(&document)?;
        let prompt = document.value(api.prompt()).unwrap_or_default();
        let context =
            [Name::Model, Name::CacheSalt, Name::Tools].map(|name| document.value(name).unwrap_or_default());
        Ok(Self {
            api,
            stream,
            tokens: estimate_tokens(prompt),
            chain: PrefixChain::new(&context, prompt),
            document,
        })
    }

    /// Whether one instance has to do all of it. The prompt's own probabilities come only from where the prompt is computed;
    /// and of several prompts a prefill instance would keep the KV of all, but name that of one.
    pub fn is_indivisible(&self) -> bool {
        let is_set = |name| {
            self.document
                .value(name)
                .is_some_and(|value| value != b"null" && value != b"false")
        };
        is_set(Name::PromptLogprobs)
            || is_set(Name::Echo) && is_set(Name::Logprobs)
            || self.has_several_prompts()
    }

    fn has_several_prompts(&self) -> bool {
        if self.api != Api::Completions {
            return false;
        }
        let prompt = self.document.value(Name::Prompt).unwrap_or_default();
        let inside = prompt.strip_prefix(b"[").unwrap_or_default().trim_ascii_start();
        matches!(inside.first(), Some(b'[' | b'"'))
            && self
                .document
                .read::<Vec<&RawValue>>(Name::Prompt)
                .is_some_and(|prompts| prompts.len() > 1)
    }

    /// The prompt's token ids, if it is a list of them and nothing else decides its KV.
    pub fn token_ids(&self) -> Option<Vec<u32>> {
        let is_plain = self.api == Api::Completions && !self.document.has(Name::CacheSalt);
        is_plain.then(|| self.document.read(Name::Prompt)).flatten()
    }

    /// The body of the prefill leg: one token, no stream, and the KV kept. `followed_as`: the name by which a decode instance
    /// follows the computation, which needs no escapes.
    pub fn prefill_body(&self, followed_as: Option<&str>) -> Pieces {
        let mut added = vec![Bytes::from_static(KEEP_FOR_DECODE)];
        if let Some(name) = followed_as {
            added.push(Bytes::from(format!(r#","kvstored_transfer":"{name}""#)));
        }
        added.push(Bytes::from_static(ONE_TOKEN));
        if self.document.has(Name::MaxCompletionTokens) {
            added.push(Bytes::from_static(br#","max_completion_tokens":1"#));
        }
        self.document.with(&NOT_FOR_PREFILL, &added)
    }

    /// The body of the decode leg: the client's, with the parameters of the prefill's answer, if it had any. What the client
    /// itself wrote there never gets through: it would name a machine to pull from.
    pub fn decode_body(&self, transfer: Option<&Bytes>) -> Pieces {
        let name = Bytes::from_static(br#""kv_transfer_params":"#);
        let cut = [Name::KvTransferParams];
        match transfer {
            Some(transfer) => self.document.with(&cut, &[name, transfer.clone()]),
            None if self.document.has(Name::KvTransferParams) => {
                self.document.with(&cut, &[name, Bytes::from_static(b"null")])
            }
            None => Pieces::from(self.document.body().clone()),
        }
    }
}

/// vLLM takes extra arguments of any name; transfer parameters among them would name a machine to pull from.
fn refuse_hidden_transfer(document: &Document) -> Result<(), String> {
    let extra: Option<HashMap<String, &RawValue>> = document.read(Name::VllmXargs);
    if extra.is_some_and(|extra| extra.contains_key("kv_transfer_params")) {
        return Err("vllm_xargs must not have kv_transfer_params".to_owned());
    }
    Ok(())
}

/// From the raw JSON of a prompt: of token ids their number, of text a guess by its length.
fn estimate_tokens(prompt: &[u8]) -> u64 {
    let is_ids = prompt.first() == Some(&b'[')
        && prompt
            .iter()
            .skip(1)
            .find(|byte| !byte.is_ascii_whitespace() && **byte != b'[')
            .is_some_and(u8::is_ascii_digit);
    let tokens = if is_ids {
        memchr::memchr_iter(b',', prompt).count() + 1
    } else {
        prompt.len().div_ceil(BYTES_PER_TOKEN)
    };
    tokens as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(body: &Value) -> CompletionRequest {
        CompletionRequest::parse(Api::Completions, Bytes::from(body.to_string())).unwrap()
    }

    fn value(pieces: Pieces) -> Value {
        let executor = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = executor
            .block_on(http_body_util::BodyExt::collect(pieces))
            .unwrap();
        serde_json::from_slice(&body.to_bytes()).unwrap()
    }

    #[test]
    fn the_legs_get_what_the_protocol_says() {
        let request = request(&json!({
            "model": "m", "prompt": "p", "stream": true, "stream_options": {"include_usage": true},
            "max_tokens": 9, "max_completion_tokens": 9, "min_tokens": 3, "temperature": 0.5, "n": 2, "best_of": 3,
            "kv_transfer_params": {"remote_host": "evil"},
        }));
        assert!(request.stream);
        let keep = json!({
            "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
            "remote_block_ids": null, "remote_host": null, "remote_port": null,
        });
        assert_eq!(
            value(request.prefill_body(None)),
            json!({
                "model": "m", "prompt": "p", "stream": false, "max_tokens": 1, "max_completion_tokens": 1,
                "min_tokens": 1, "temperature": 0.5, "kv_transfer_params": keep,
            })
        );
        let followed = value(request.prefill_body(Some("name")));
        assert_eq!(followed["kv_transfer_params"]["kvstored_transfer"], "name");
        assert_eq!(followed["max_tokens"], 1);
        let transfer = Bytes::from_static(br#"{"remote_host":"p1"}"#);
        let decode = value(request.decode_body(Some(&transfer)));
        assert_eq!(decode["kv_transfer_params"], json!({"remote_host": "p1"}));
        assert_eq!(
            (&decode["max_tokens"], &decode["stream"]),
            (&json!(9), &json!(true))
        );
        assert_eq!(
            value(request.decode_body(None))["kv_transfer_params"],
            Value::Null
        );
    }

    #[test]
    fn an_untouched_body_is_sent_as_it_came() {
        let body = json!({"prompt": "p"});
        let request = request(&body);
        assert_eq!(value(request.decode_body(None)), body);
        assert!(!request.stream);
    }

    #[test]
    fn what_would_name_another_machine_is_refused() {
        for body in [
            r#"{"vllm_xargs":{"kv_transfer_params":{"remote_host":"evil"}}}"#,
            r#"{"vllm_xargs":{"kv_transfer_param\u0073":1}}"#,
        ] {
            let error = CompletionRequest::parse(Api::Chat, Bytes::from_static(body.as_bytes())).unwrap_err();
            assert!(error.contains("vllm_xargs"), "{error}");
        }
        let fine = r#"{"vllm_xargs":{"a":1},"stream":null}"#;
        assert!(CompletionRequest::parse(Api::Chat, Bytes::from_static(fine.as_bytes())).is_ok());
        for body in [r#"{"stream":1}"#, r#"{"stream":"true"}"#] {
            assert!(CompletionRequest::parse(Api::Chat, Bytes::from_static(body.as_bytes())).is_err());
        }
    }

    #[test]
    fn what_one_instance_has_to_do_is_known() {
        for (body, indivisible) in [
            (json!({"prompt": ["a", "b"]}), true),
            (json!({"prompt": [[1, 2], [3]]}), true),
            (json!({"prompt": ["a"]}), false),
            (json!({"prompt": [[1, 2]]}), false),
            (json!({"prompt": [1, 2]}), false),
            (json!({"prompt": "[\"a\",\"b\"]"}), false),
            (json!({"prompt_logprobs": 0}), true),
            (json!({"echo": true, "logprobs": 1}), true),
            (
                json!({"prompt_logprobs": null, "echo": false, "logprobs": 1}),
                false,
            ),
            (json!({"echo": true, "logprobs": null}), false),
            (json!({"logprobs": 5}), false),
        ] {
            assert_eq!(request(&body).is_indivisible(), indivisible, "{body}");
        }
    }

    #[test]
    fn ids_are_read_where_nothing_else_decides() {
        assert_eq!(request(&json!({"prompt": [1, 2]})).token_ids(), Some(vec![1, 2]));
        for body in [
            json!({"prompt": "p"}),
            json!({"prompt": [[1, 2]]}),
            json!({"prompt": [-1]}),
            json!({"prompt": [1], "cache_salt": "s"}),
        ] {
            assert_eq!(request(&body).token_ids(), None, "{body}");
        }
    }

    #[test]
    fn tokens_are_counted_or_guessed() {
        assert_eq!(estimate_tokens(b"[1, 2,3]"), 3);
        assert_eq!(estimate_tokens(b"[[1,2],[3]]"), 3);
        assert_eq!(estimate_tokens(b"\"12345678\""), 3);
        assert_eq!(estimate_tokens(br#"[{"role":"user"}]"#), 5);
        assert_eq!(estimate_tokens(b""), 0);
    }
}
