//! Identities, layouts and durabilities in messages.

use kvstored_core::error::{Error, Result};
use kvstored_core::identity::{Identity, ParallelShape};
use kvstored_core::layout::{Layout, Shard};
use kvstored_core::tier::Durability;

use super::buffer::{Reader, Writer};

pub(super) fn checked_shards(shards: usize) -> Result<u16> {
    if shards > Layout::MAX_SHARDS {
        return Err(Error::invalid(format!(
            "a block has {shards} shard checksums; at most {} are accepted",
            Layout::MAX_SHARDS
        )));
    }
    Ok(shards as u16)
}

pub(super) fn write_identity(writer: &mut Writer, identity: &Identity) -> Result<()> {
    for (what, text) in [
        ("tenant", &identity.tenant),
        ("model", &identity.model),
        ("weights_digest", &identity.weights_digest),
        ("lora", &identity.lora),
        ("dtype", &identity.dtype),
        ("cache_salt", &identity.cache_salt),
    ] {
        writer.text(what, text)?;
    }
    writer.u32(identity.layout_version);
    writer.u32(identity.block_tokens);
    writer.u32(identity.parallel.tensor_parallel_size);
    writer.u32(identity.parallel.tensor_parallel_rank);
    writer.u32(identity.parallel.pipeline_parallel_size);
    writer.u32(identity.parallel.pipeline_parallel_rank);
    Ok(())
}

pub(super) fn read_identity(reader: &mut Reader<'_>) -> Result<Identity> {
    Ok(Identity {
        tenant: reader.text("tenant")?,
        model: reader.text("model")?,
        weights_digest: reader.text("weights_digest")?,
        lora: reader.text("lora")?,
        dtype: reader.text("dtype")?,
        cache_salt: reader.text("cache_salt")?,
        layout_version: reader.u32()?,
        block_tokens: reader.u32()?,
        parallel: ParallelShape {
            tensor_parallel_size: reader.u32()?,
            tensor_parallel_rank: reader.u32()?,
            pipeline_parallel_size: reader.u32()?,
            pipeline_parallel_rank: reader.u32()?,
        },
    })
}

pub(super) fn write_layout(writer: &mut Writer, layout: &Layout) {
    writer.u16(layout.shards().len() as u16);
    for shard in layout.shards() {
        writer.u16(shard.tensor_bytes.len() as u16);
        for bytes in &shard.tensor_bytes {
            writer.u32(*bytes);
        }
    }
}

pub(super) fn read_layout(reader: &mut Reader<'_>) -> Result<Layout> {
    let count = usize::from(checked_shards(usize::from(reader.u16()?))?);
    reader.expect_room(count, 2)?;
    let mut shards = Vec::with_capacity(count);
    for index in 0..count {
        let tensors = usize::from(reader.u16()?);
        if tensors > Layout::MAX_TENSORS_PER_SHARD {
            return Err(Error::invalid(format!(
                "shard {index} has {tensors} tensors; at most {} are accepted",
                Layout::MAX_TENSORS_PER_SHARD
            )));
        }
        reader.expect_room(tensors, 4)?;
        let tensor_bytes = (0..tensors).map(|_| reader.u32()).collect::<Result<Vec<u32>>>()?;
        shards.push(Shard { tensor_bytes });
    }
    Layout::new(shards)
}

pub(super) const fn durability_code(durability: Durability) -> u8 {
    match durability {
        Durability::Memory => 0,
        Durability::Tier => 1,
        Durability::Durable => 2,
    }
}

pub(super) fn durability_from_code(code: u8) -> Result<Durability> {
    match code {
        0 => Ok(Durability::Memory),
        1 => Ok(Durability::Tier),
        2 => Ok(Durability::Durable),
        other => Err(Error::invalid(format!(
            "durability {other} is not one of 0, 1, 2"
        ))),
    }
}
