//! Reading a batch of KV events.
//!
//! A batch is MessagePack: `[time, [event, …], rank]`. An event is a map with a tag `type`, or, from older versions of vLLM,
//! a list that begins with the tag. A block's hash is an integer or bytes.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use twox_hash::XxHash3_64;

/// What happened to blocks of an instance.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Blocks are there now.
    Stored(Stored),
    /// Blocks are gone.
    Removed(Removed),
    /// All blocks are gone.
    Cleared,
    /// Something that this proxy doesn't know.
    Unknown,
}

/// Blocks that are there now, each the next one's parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Their hashes.
    pub hashes: Vec<u64>,
    /// The hash of the block before; none at the beginning of a prompt.
    pub parent: Option<u64>,
    /// The tokens of all of them.
    pub tokens: Vec<u32>,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Where they lie.
    pub medium: Medium,
    /// Whether something besides tokens decides their content: an adapter, an image, a salt.
    pub has_extras: bool,
    /// Whether they are of the first group of layers; others mirror it.
    pub is_first_group: bool,
}

/// Blocks that are gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Removed {
    /// Their hashes.
    pub hashes: Vec<u64>,
    /// Where they lay.
    pub medium: Medium,
    /// As in [`Stored`].
    pub is_first_group: bool,
}

/// Where blocks lie, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// In the device's memory.
    #[default]
    Device = 1,
    /// In the host's.
    Host = 2,
    /// Elsewhere.
    Other = 4,
}

/// The events of a batch; none if it can't be read.
pub fn read(payload: &[u8]) -> Option<Vec<Event>> {
    let batch: Batch = rmp_serde::from_slice(payload).ok()?;
    Some(batch.events)
}

struct Batch {
    events: Vec<Event>,
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BatchVisitor;
        impl<'de> Visitor<'de> for BatchVisitor {
            type Value = Batch;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a batch of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Batch, A::Error> {
                let _time: Option<f64> = list.next_element()?;
                let events = list
                    .next_element()?
                    .ok_or_else(|| <A::Error as de::Error>::missing_field("events"))?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Batch { events })
            }
        }
        deserializer.deserialize_seq(BatchVisitor)
    }
}

/// A block's hash. Of bytes a shorter one is made; two blocks with the same cost a wrong guess.
#[derive(Clone, Copy)]
struct Hash(u64);

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HashVisitor;
        impl Visitor<'_> for HashVisitor {
            type Value = Hash;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a block's hash")
            }

            fn visit_u64<E>(self, value: u64) -> Result<Hash, E> {
                Ok(Hash(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Hash, E> {
                Ok(Hash(value as u64))
            }

            fn visit_bytes<E>(self, value: &[u8]) -> Result<Hash, E> {
                Ok(Hash(XxHash3_64::oneshot(value)))
            }
        }
        deserializer.deserialize_any(HashVisitor)
    }
}

/// The fields that matter, of any event.
#[derive(Default)]
struct Fields {
    hashes: Vec<Hash>,
    parent: Option<Hash>,
    tokens: Vec<u32>,
    block_tokens: usize,
    lora_id: Option<i64>,
    lora_name: Option<String>,
    medium: Option<String>,
    extra_keys: Option<Vec<Option<IgnoredAny>>>,
    group: Option<u32>,
}

impl Fields {
    fn event(self, tag: &str) -> Event {
        let medium = match self.medium.as_deref() {
            None | Some("GPU") => Medium::Device,
            Some("CPU") => Medium::Host,
            Some(_) => Medium::Other,
        };
        let hashes = self.hashes.into_iter().map(|hash| hash.0).collect();
        let is_first_group = self.group.unwrap_or(0) == 0;
        match tag {
            "BlockStored" => Event::Stored(Stored {
                hashes,
                parent: self.parent.map(|hash| hash.0),
                tokens: self.tokens,
                block_tokens: self.block_tokens,
                medium,
                has_extras: self.lora_id.is_some()
                    || self.lora_name.is_some()
                    || self
                        .extra_keys
                        .is_some_and(|keys| keys.iter().any(Option::is_some)),
                is_first_group,
            }),
            "BlockRemoved" => Event::Removed(Removed {
                hashes,
                medium,
                is_first_group,
            }),
            "AllBlocksCleared" => Event::Cleared,
            _ => Event::Unknown,
        }
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EventVisitor)
    }
}

struct EventVisitor;

impl<'de> Visitor<'de> for EventVisitor {
    type Value = Event;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
        let mut tag = String::new();
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "type" => tag = map.next_value()?,
                "block_hashes" => fields.hashes = map.next_value()?,
                "parent_block_hash" => fields.parent = map.next_value()?,
                "token_ids" => fields.tokens = map.next_value()?,
                "block_size" => fields.block_tokens = map.next_value()?,
                "lora_id" => fields.lora_id = map.next_value()?,
                "lora_name" => fields.lora_name = map.next_value()?,
                "medium" => fields.medium = map.next_value()?,
                "extra_keys" => fields.extra_keys = map.next_value()?,
                "group_idx" => fields.group = map.next_value()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields.event(&tag))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Event, A::Error> {
        let tag: String = list.next_element()?.unwrap_or_default();
        let mut fields = Fields::default();
        if tag == "BlockStored" || tag == "BlockRemoved" {
            fields.hashes = list.next_element()?.unwrap_or_default();
        }
        if tag == "BlockStored" {
            fields.parent = list.next_element()?.flatten();
            fields.tokens = list.next_element()?.unwrap_or_default();
            fields.block_tokens = list.next_element()?.unwrap_or_default();
            fields.lora_id = list.next_element()?.flatten();
        }
        if tag == "BlockStored" || tag == "BlockRemoved" {
            fields.medium = list.next_element()?.flatten();
        }
        if tag == "BlockStored" {
            fields.lora_name = list.next_element()?.flatten();
            fields.extra_keys = list.next_element()?.flatten();
            fields.group = list.next_element()?.flatten();
        } else if tag == "BlockRemoved" {
            fields.group = list.next_element()?.flatten();
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(fields.event(&tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn batch(events: Value) -> Option<Vec<Event>> {
        read(&rmp_serde::to_vec(&(1.5, events, 0)).unwrap())
    }

    #[test]
    fn maps_and_lists_say_the_same() {
        let map = json!({
            "type": "BlockStored", "block_hashes": [1, u64::MAX], "parent_block_hash": null, "token_ids": [5, 6],
            "block_size": 1, "lora_id": null, "medium": "CPU", "lora_name": null, "extra_keys": [null, null],
            "group_idx": 1, "locality": "LOCAL",
        });
        let list = json!([
            "BlockStored",
            [1, u64::MAX],
            null,
            [5, 6],
            1,
            null,
            "CPU",
            null,
            [null, null],
            1,
            "more"
        ]);
        let expected = Stored {
            hashes: vec![1, u64::MAX],
            parent: None,
            tokens: vec![5, 6],
            block_tokens: 1,
            medium: Medium::Host,
            has_extras: false,
            is_first_group: false,
        };
        for event in [map, list] {
            assert_eq!(batch(json!([event])), Some(vec![Event::Stored(expected.clone())]));
        }
        // the oldest ones end early
        let short = json!([
            ["BlockStored", [1], 2, [5], 1, 7],
            ["BlockRemoved", [1]],
            ["AllBlocksCleared"]
        ]);
        let events = batch(short).unwrap();
        assert!(matches!(&events[0], Event::Stored(stored) if stored.has_extras && stored.parent == Some(2)));
        assert!(matches!(&events[1], Event::Removed(removed) if removed.hashes == [1]));
        assert_eq!(events[2], Event::Cleared);
    }

    #[test]
    fn hashes_may_be_bytes() {
        // [1.5, [["BlockRemoved", [32 bytes]]]]
        let mut payload = b"\x92\xcb\x3f\xf8\0\0\0\0\0\0\x91\x92\xacBlockRemoved\x91\xc4\x20".to_vec();
        payload.extend_from_slice(&[7; 32]);
        let events = read(&payload).unwrap();
        assert!(matches!(&events[..], [Event::Removed(removed)] if removed.hashes.len() == 1));
    }

    #[test]
    fn extras_are_seen() {
        for field in [
            json!({"lora_name": "a"}),
            json!({"lora_id": 3}),
            json!({"extra_keys": [null, ["salt"]]}),
        ] {
            let mut event = json!({"type": "BlockStored"});
            event
                .as_object_mut()
                .unwrap()
                .extend(field.as_object().unwrap().clone());
            let events = batch(json!([event])).unwrap();
            assert!(
                matches!(&events[0], Event::Stored(stored) if stored.has_extras),
                "{field}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut payload in prop::collection::vec(any::<u8>(), 0..200), is_begun in any::<bool>()) {
            if is_begun {
                let mut whole = b"\x93\xcb\0\0\0\0\0\0\0\0\x91".to_vec();
                whole.append(&mut payload);
                payload = whole;
            }
            let _ = read(&payload);
        }
    }
}
