//! Changing a few fields of a JSON object without writing the rest again.
//!
//! [`Document::scan`] checks that a body is one well-formed JSON object and notes where the fields lie that the proxy
//! knows. [`Document::with`] makes another body of it: some fields cut out, others put in front, all else the same bytes.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::pieces::Pieces;

/// Bodies up to this size are put together by copying, which is cheaper than writing several slices.
const COPY_BYTES: usize = 16 << 10;
/// The most fields the proxy looks at; there are fewer names, but one may come twice.
const MAX_KNOWN_FIELDS: usize = 256;

/// Fields of a completion request, or of an answer, that the proxy reads or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
#[allow(missing_docs)] // the names are those of the API
pub enum Name {
    Model,
    Prompt,
    Messages,
    Tools,
    CacheSalt,
    Stream,
    StreamOptions,
    MaxTokens,
    MaxCompletionTokens,
    MinTokens,
    N,
    BestOf,
    UseBeamSearch,
    AddGenerationPrompt,
    ContinueFinalMessage,
    PromptLogprobs,
    Echo,
    Logprobs,
    KvTransferParams,
    VllmXargs,
    Usage,
    /// Any other field.
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug)]
struct Field {
    name: Name,
    /// From the end of the field before (or the opening brace) to the end of this one's value: with the comma before it.
    segment: Range<usize>,
    value: Range<usize>,
}

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Document {
    body: Bytes,
    /// Just behind the opening brace.
    start: usize,
    is_empty: bool,
    known: Vec<Field>,
}

impl Document {
    /// Reads a body.
    pub fn scan(body: Bytes) -> serde_json::Result<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(&body);
        let start = body.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
        let found = Scan { body: &body, start }.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(Self {
            start,
            is_empty: found.count == 0,
            known: found.known,
            body,
        })
    }

    /// The raw JSON of a field's value. Of a field that comes twice the last counts, as for the engines.
    pub fn value(&self, name: Name) -> Option<&[u8]> {
        let field = self.known.iter().rfind(|field| field.name == name)?;
        self.body.get(field.value.clone())
    }

    /// The same as a slice of the body.
    pub fn value_bytes(&self, name: Name) -> Option<Bytes> {
        let field = self.known.iter().rfind(|field| field.name == name)?;
        Some(self.body.slice(field.value.clone()))
    }

    /// A field's value as that type, if it is there and is one.
    pub fn read<'a, T: Deserialize<'a>>(&'a self, name: Name) -> Option<T> {
        serde_json::from_slice(self.value(name)?).ok()
    }

    /// Whether the field is there.
    pub fn has(&self, name: Name) -> bool {
        self.known.iter().any(|field| field.name == name)
    }

    /// The body as it came.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The body without the fields `cut`, and with `added` in front: fields as in JSON, separated by commas, at least one.
    pub fn with(&self, cut: &[Name], added: &[Bytes]) -> Pieces {
        let mut pieces = Vec::with_capacity(2 * cut.len() + added.len() + 3);
        pieces.push(Bytes::from_static(b"{"));
        pieces.extend(added.iter().cloned());
        let mut from = self.start;
        let mut first_kept = !self.is_empty;
        for field in self.known.iter().filter(|field| cut.contains(&field.name)) {
            first_kept &= field.segment.start != self.start;
            if field.segment.start > from {
                pieces.push(self.body.slice(from..field.segment.start));
            }
            from = field.segment.end;
        }
        if first_kept {
            // every field but the first has its comma in front of it
            pieces.insert(1 + added.len(), Bytes::from_static(b","));
        }
        pieces.push(self.body.slice(from..));
        let length: usize = pieces.iter().map(Bytes::len).sum();
        if length <= COPY_BYTES {
            Pieces::from(Bytes::from(pieces.concat()))
        } else {
            Pieces::new(pieces)
        }
    }
}

struct Found {
    count: usize,
    known: Vec<Field>,
}

struct Scan<'b> {
    body: &'b [u8],
    start: usize,
}

impl<'de> DeserializeSeed<'de> for Scan<'de> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Scan<'de> {
    type Value = Found;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found {
            count: 0,
            known: Vec::new(),
        };
        let mut end = self.start;
        while let Some(name) = map.next_key::<Name>()? {
            let value = map.next_value::<&'de RawValue>()?.get();
            // the value borrows from the body, so the distance of their addresses is its place in it
            let from = value.as_ptr().addr() - self.body.as_ptr().addr();
            let to = from + value.len();
            found.count += 1;
            if name != Name::Other {
                if found.known.len() >= MAX_KNOWN_FIELDS {
                    return Err(serde::de::Error::custom("fields are repeated too often"));
                }
                found.known.push(Field {
                    name,
                    segment: end..to,
                    value: from..to,
                });
            }
            end = to;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    fn scan(text: &str) -> serde_json::Result<Document> {
        Document::scan(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn text(pieces: Pieces) -> String {
        let bytes: Vec<u8> = pieces_of(pieces).concat();
        String::from_utf8(bytes).unwrap()
    }

    fn pieces_of(mut pieces: Pieces) -> Vec<Bytes> {
        use hyper::body::Body;
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut all = Vec::new();
        while let std::task::Poll::Ready(Some(Ok(frame))) =
            std::pin::Pin::new(&mut pieces).poll_frame(&mut context)
        {
            all.push(frame.into_data().unwrap());
        }
        all
    }

    const X: Bytes = Bytes::from_static(br#""x":1"#);

    #[test]
    fn fields_are_cut_wherever_they_stand() {
        for (before, after) in [
            ("{}", r#"{"x":1}"#),
            (" { } ", r#"{"x":1 } "#),
            (r#"{"stream":true}"#, r#"{"x":1}"#),
            (r#"{"stream":true,"a":2}"#, r#"{"x":1,"a":2}"#),
            (r#"{"a":2,"stream":true}"#, r#"{"x":1,"a":2}"#),
            (
                r#"{"a" : 2 , "stream" : true , "b" : 3 }"#,
                r#"{"x":1,"a" : 2 , "b" : 3 }"#,
            ),
            (r#"{"stream":true,"stream":false}"#, r#"{"x":1}"#),
            (r#"{"str\u0065am":true,"a":"stream"}"#, r#"{"x":1,"a":"stream"}"#),
            (r#"{"a":{"stream":true}}"#, r#"{"x":1,"a":{"stream":true}}"#),
        ] {
            let document = scan(before).unwrap();
            assert_eq!(text(document.with(&[Name::Stream], &[X])), after, "{before}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for wrong in [
            "",
            "[]",
            "1",
            "null",
            "\"{}\"",
            "{",
            "{}}",
            "{} {}",
            "{a:1}",
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            r#"{"a":"\x"}"#,
            r#"{"a":[1,]}"#,
            r#"{"a" 1}"#,
            r#"{"a":1 "b":2}"#,
        ] {
            assert!(scan(wrong).is_err(), "{wrong}");
        }
        assert!(Document::scan(Bytes::from_static(b"{\"a\":\"\xff\"}")).is_err());
        let repeated = format!("{{{}\"stream\":1}}", "\"stream\":1,".repeat(MAX_KNOWN_FIELDS));
        assert!(scan(&repeated).is_err());
    }

    #[test]
    fn deep_nesting_neither_overflows_nor_passes_unclosed() {
        let deep = "[".repeat(1_000_000);
        assert!(scan(&format!("{{\"a\":{deep}}}")).is_err());
        assert!(scan(&deep).is_err());
    }

    #[test]
    fn the_last_of_two_counts() {
        let document = scan(r#"{"stream":true,"max_tokens":5,"stream":false}"#).unwrap();
        assert_eq!(document.read::<bool>(Name::Stream), Some(false));
        assert_eq!(document.read::<u64>(Name::MaxTokens), Some(5));
        assert_eq!(document.read::<bool>(Name::MaxTokens), None);
        assert!(!document.has(Name::Prompt));
    }

    #[test]
    fn a_large_value_is_sent_from_where_it_lies() {
        let body = Bytes::from(format!(
            r#"{{"stream":true,"prompt":"{}"}}"#,
            "a".repeat(COPY_BYTES)
        ));
        let document = Document::scan(body.clone()).unwrap();
        let pieces = pieces_of(document.with(&[Name::Stream], &[X]));
        let longest = pieces.iter().max_by_key(|piece| piece.len()).unwrap();
        let inside = body.as_ptr_range();
        assert!(longest.len() > COPY_BYTES && inside.contains(&longest.as_ptr()));
    }

    fn any_object() -> impl Strategy<Value = Vec<(String, Value)>> {
        let name = prop_oneof![
            Just("stream".to_owned()),
            Just("prompt".to_owned()),
            Just("max_tokens".to_owned()),
            "[a-z\"\\\\]{0,6}",
        ];
        let value = prop_oneof![
            any::<i32>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            any::<bool>().prop_map(|flag| json!([flag, {"stream": flag, "x": []}])),
        ];
        prop::collection::vec((name, value), 0..8)
    }

    proptest! {
        #[test]
        fn an_edit_is_what_a_parser_would_have_made(fields in any_object(), pretty in any::<bool>()) {
            let separator = if pretty { " ,\n " } else { "," };
            let written: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
                .collect();
            let before = format!("{{{}}}", written.join(separator));
            let mut expected: Map<String, Value> = serde_json::from_str(&before).unwrap();
            expected.remove("stream");
            expected.remove("prompt");
            expected.insert("kv_added".to_owned(), json!(null));
            let document = scan(&before).unwrap();
            let added = [Bytes::from_static(b"\"kv_added\":null")];
            let after = text(document.with(&[Name::Prompt, Name::Stream], &added));
            let found: Map<String, Value> = serde_json::from_str(&after).unwrap();
            prop_assert_eq!(found, expected, "{}", after);
        }

        #[test]
        fn any_bytes_are_judged_as_the_parser_judges_them(text in "[{}\\[\\]\",:a1\\\\ \n]{0,24}") {
            let parsed = serde_json::from_str::<Map<String, Value>>(&text).is_ok();
            prop_assert_eq!(scan(&text).is_ok(), parsed, "{}", text);
        }
    }
}
