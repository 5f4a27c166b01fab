//! What a namespace's digest stands for, as text that plugins get and give back.

use kvstored_core::{Error, ErrorKind, Identity, Layout, Namespace, NamespaceInfo, Result, Shard};
use serde::Deserialize;

/// The longest description that is taken from a plugin.
pub(crate) const MOST_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct Description {
    identity: Identity,
    layout: Vec<Vec<u32>>,
}

/// Identity and layout as JSON, as in a manifest of the Posix tier.
pub(crate) fn describe(info: &NamespaceInfo) -> Result<String> {
    let shards = info.layout.shards().iter();
    let layout: Vec<&[u32]> = shards.map(|shard| shard.tensor_bytes.as_slice()).collect();
    serde_json::to_string(&serde_json::json!({"identity": info.identity, "layout": layout}))
        .map_err(|error| Error::internal(format!("a namespace's description: {error}")))
}

/// The namespace that a description stands for. Fails with `InvalidInput`, and with `Mismatch` where it's another one's.
pub(crate) fn described(description: &[u8], digest: &Namespace) -> Result<NamespaceInfo> {
    let Description { identity, layout } = serde_json::from_slice(description)
        .map_err(|error| Error::invalid(format!("a namespace's description: {error}")))?;
    let shards = layout.into_iter().map(|tensor_bytes| Shard { tensor_bytes });
    let info = NamespaceInfo::new(identity, Layout::new(shards.collect())?)?;
    if info.namespace != *digest {
        let what = "a namespace's description is another one's";
        return Err(Error::new(ErrorKind::Mismatch, what).with("namespace", digest));
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_stands_for_its_own_namespace_only() {
        let identity = Identity {
            tenant: "bounded".into(),
            model: "model \"quoted\"".into(),
            ..Identity::default()
        };
        let info = NamespaceInfo::new(identity, Layout::uniform(3, 2, 5000).unwrap()).unwrap();
        let text = describe(&info).unwrap();
        assert_eq!(described(text.as_bytes(), &info.namespace).unwrap(), info);
        let other = described(text.as_bytes(), &Namespace([7; 32])).unwrap_err();
        assert_eq!(other.kind(), ErrorKind::Mismatch);
        for wrong in [
            "",
            "{}",
            "{\"identity\": {}, \"layout\": [[]]}",
            &text[..text.len() - 1],
        ] {
            let error = described(wrong.as_bytes(), &info.namespace).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong}");
        }
    }
}
