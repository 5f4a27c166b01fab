//! Whole keys: a caller's key together with the tenant that it belongs to.

use kvstored_core::{Error, Result};

/// The longest whole key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// The longest name of a tenant, in bytes.
pub const MAX_TENANT_BYTES: usize = 64;

/// A tenant's key as masters and nodes know it: one byte with the length of the tenant's name, the name, the key. The
/// default tenant's name is empty.
///
/// Fails with `InvalidInput` when a part is too long or the key is empty.
pub fn whole_key(tenant: &str, key: &[u8]) -> Result<Box<[u8]>> {
    if tenant.len() > MAX_TENANT_BYTES {
        return Err(Error::invalid(format!(
            "a tenant's name of {} bytes; at most {MAX_TENANT_BYTES} are accepted",
            tenant.len()
        )));
    }
    let length = 1 + tenant.len() + key.len();
    if key.is_empty() || length > MAX_KEY_BYTES {
        let most = MAX_KEY_BYTES - 1 - tenant.len();
        return Err(Error::invalid(format!(
            "a key of {} bytes; 1 to {most} are accepted",
            key.len()
        )));
    }
    let mut whole = Vec::with_capacity(length);
    whole.push(tenant.len() as u8);
    whole.extend_from_slice(tenant.as_bytes());
    whole.extend_from_slice(key);
    Ok(whole.into_boxed_slice())
}

/// The tenant and its key. Fails with `InvalidInput` for bytes that aren't a whole key.
pub fn split_key(whole: &[u8]) -> Result<(&str, &[u8])> {
    let wrong = || Error::invalid("not a whole key: the length of a tenant's name, the name, a key");
    if whole.len() > MAX_KEY_BYTES {
        return Err(Error::invalid(format!(
            "a whole key of {} bytes; at most {MAX_KEY_BYTES} are accepted",
            whole.len()
        )));
    }
    let (length, rest) = whole.split_first().ok_or_else(wrong)?;
    let length = usize::from(*length);
    if length > MAX_TENANT_BYTES || rest.len() <= length {
        return Err(wrong());
    }
    let (tenant, key) = rest.split_at(length);
    let tenant = std::str::from_utf8(tenant).map_err(|_| wrong())?;
    Ok((tenant, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        for (tenant, key) in [("", &b"\0"[..]), ("a", b"k"), ("long-name", &[255; 900])] {
            let whole = whole_key(tenant, key).unwrap();
            assert_eq!(split_key(&whole).unwrap(), (tenant, key));
        }
    }

    #[test]
    fn what_is_not_a_whole_key_is_refused() {
        for bytes in [
            &b""[..],
            b"\0",
            b"\x01a",
            b"\x05abc",
            b"k",
            &[0; 1025],
            b"\x01\xffk",
        ] {
            assert!(split_key(bytes).is_err(), "{bytes:?}");
        }
        assert!(whole_key("", b"").is_err());
        assert!(whole_key("", &[1; 1024]).is_err());
        assert!(whole_key(&"t".repeat(65), b"k").is_err());
    }

    #[test]
    fn tenants_do_not_meet() {
        assert_ne!(whole_key("ab", b"c").unwrap(), whole_key("a", b"bc").unwrap());
    }
}
