//! Engine memory on a device: the host device stands for one.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use kvstored_backends::device::{HostDevice, HostDeviceSettings};
use kvstored_core::block::BlockHash;
use kvstored_core::device::{CopyBatch, DeviceMemory, Direction, Stream};
use kvstored_core::error::ErrorKind;
use kvstored_core::memory::Arena;
use kvstored_core::tier::Durability;
use kvstored_core::{Device, Runtime};

use super::rig::{Memory, PATIENCE, Rig, dumped, hash, hashes, layout, loaded, open, settings};
use super::*;
use crate::DeviceHandle;

const MOMENT: Duration = Duration::from_millis(30);

/// A device, and memory on it for some blocks and shards.
struct Engine {
    host: Arc<HostDevice>,
    device: Arc<dyn Device>,
    handle: DeviceHandle,
}

/// Memory of the engine on the device, tensors one after the other.
struct OnDevice {
    memory: Arc<DeviceMemory>,
    sizes: Vec<u32>,
}

impl Engine {
    fn new() -> Self {
        let settings = HostDeviceSettings {
            huge_pages: false,
            ..HostDeviceSettings::default()
        };
        let host = HostDevice::new(settings, Runtime::system());
        let device: Arc<dyn Device> = host.clone();
        Self {
            host,
            handle: DeviceHandle::new(device.clone(), Runtime::system()),
            device,
        }
    }

    /// Memory with those bytes.
    fn put(&self, memory: &mut Memory) -> OnDevice {
        let tensors = memory.tensors();
        let bytes: Vec<u8> = tensors
            .iter()
            // SAFETY: the tensors lie in the memory
            .flat_map(|tensor| unsafe {
                std::slice::from_raw_parts(tensor.address as *const u8, tensor.bytes as usize)
            })
            .copied()
            .collect();
        let arena = Arc::new(Arena::heap(bytes.len()).unwrap());
        arena.write(0, &bytes).unwrap();
        let here = OnDevice {
            memory: DeviceMemory::allocate(&self.device, bytes.len()).unwrap(),
            sizes: tensors.iter().map(|tensor| tensor.bytes).collect(),
        };
        self.move_all(Direction::HostToDevice, &arena, &here);
        here
    }

    /// Brings memory back into the host's.
    fn take(&self, here: &OnDevice, memory: &mut Memory) {
        let arena = Arc::new(Arena::heap(here.memory.bytes()).unwrap());
        self.move_all(Direction::DeviceToHost, &arena, here);
        let mut offset = 0;
        for tensor in memory.tensors() {
            let mut bytes = vec![0; tensor.bytes as usize];
            arena.read(offset, &mut bytes).unwrap();
            offset += bytes.len();
            // SAFETY: the tensor lies in the memory
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), tensor.address as *mut u8, bytes.len()) };
        }
    }

    fn move_all(&self, direction: Direction, arena: &Arc<Arena>, here: &OnDevice) {
        let stream = Stream::create(&self.device).unwrap();
        let mut batch = CopyBatch::new(direction);
        let (bytes, memory) = (here.memory.bytes(), here.memory.clone());
        // SAFETY: the memory is held
        unsafe { batch.arena_and_engine(arena, 0, memory.address(0, bytes).unwrap(), bytes) }.unwrap();
        batch.hold(memory);
        stream.copy(batch).unwrap();
        stream.synchronize(PATIENCE).unwrap();
    }
}

impl OnDevice {
    fn tensors(&self) -> Vec<TensorAddress> {
        let mut offset = 0;
        let tensor = |bytes: &u32| {
            let address = self.memory.address(offset, *bytes as usize).unwrap().0 as usize;
            offset += *bytes as usize;
            TensorAddress {
                address,
                bytes: *bytes,
            }
        };
        self.sizes.iter().map(tensor).collect()
    }
}

fn dump_request(blocks: &[BlockHash], here: &OnDevice) -> DumpRequest {
    DumpRequest {
        hashes: blocks.to_vec(),
        parent: None,
        tensors: here.tensors(),
        durability: Durability::Tier,
        timeout: None,
    }
}

fn load_request(blocks: &[BlockHash], here: &OnDevice, order: LoadOrder) -> LoadRequest {
    LoadRequest {
        hashes: blocks.to_vec(),
        shards: 0..layout().shards().len(),
        tensors: here.tensors(),
        order,
        timeout: None,
    }
}

#[test]
fn blocks_go_from_a_device_and_to_one_a_window_at_a_time() {
    // room enough for one group of a shard-major load
    let (rig, engine) = (Rig::new(64), Engine::new());
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..7);
    let computed = engine.put(&mut Memory::full(&blocks, 0..3));
    let before = engine.device.counts();
    // SAFETY: the memory outlives the task, which is waited for
    let task = unsafe {
        client.dump_from_device(&namespace, dump_request(&blocks, &computed), &engine.handle, None)
    };
    assert_eq!(dumped(&task.unwrap().wait(PATIENCE).unwrap()), 7);
    let after = engine.device.counts();
    // windows of three blocks; six tensors each
    assert_eq!(after.batch_calls - before.batch_calls, 3);
    assert_eq!(after.copies - before.copies, 7 * 6);
    for order in [LoadOrder::BlockMajor, LoadOrder::ShardMajor] {
        let mut memory = Memory::empty(&blocks, 0..3);
        let target = engine.put(&mut memory);
        let before = engine.device.counts();
        let request = load_request(&blocks, &target, order);
        // SAFETY: the memory outlives the task, which is waited for
        let task = unsafe { client.load_to_device(&namespace, request, &engine.handle, None) }.unwrap();
        for shard in 0..3 {
            task.wait_shard(shard, PATIENCE).unwrap();
        }
        assert_eq!(loaded(&task.wait(PATIENCE).unwrap()), 7);
        let after = engine.device.counts();
        assert_eq!(after.copies - before.copies, 7 * 6);
        if order == LoadOrder::ShardMajor {
            // the first shard as windows land, each further one of all blocks together
            assert_eq!(after.batch_calls - before.batch_calls, 3 + 2);
        }
        engine.take(&target, &mut memory);
        assert!((0..7).all(|block| memory.is_right(block)));
    }
    assert!(rig.eventually(|| rig.is_wholly_evictable(64)));
}

#[test]
fn tensors_may_lie_in_several_pieces() {
    let (rig, engine) = (Rig::new(32), Engine::new());
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..4);
    let halves = |tensors: Vec<TensorAddress>| {
        let split = |tensor: TensorAddress| {
            let first = tensor.bytes / 2;
            let second = TensorAddress {
                address: tensor.address + first as usize,
                bytes: tensor.bytes - first,
            };
            [
                TensorAddress {
                    bytes: first,
                    ..tensor
                },
                second,
            ]
        };
        let pieces = tensors.into_iter().flat_map(split);
        // a tensor of one byte stays whole
        pieces.filter(|piece| piece.bytes > 0).collect::<Vec<_>>()
    };
    let computed = engine.put(&mut Memory::full(&blocks, 0..3));
    let request = DumpRequest {
        tensors: halves(computed.tensors()),
        ..dump_request(&blocks, &computed)
    };
    // SAFETY: the memory outlives the task, which is waited for
    let task = unsafe { client.dump_from_device(&namespace, request, &engine.handle, None) };
    assert_eq!(dumped(&task.unwrap().wait(PATIENCE).unwrap()), 4);
    // whole tensors of the host, and pieces of it
    let report = super::rig::load(&client, &namespace, &blocks, 0..3, LoadOrder::BlockMajor);
    assert_eq!(loaded(&report), 4);
    let mut memory = Memory::empty(&blocks, 0..3);
    let target = engine.put(&mut memory);
    let mut request = load_request(&blocks, &target, LoadOrder::BlockMajor);
    request.tensors = halves(memory.tensors());
    // SAFETY: the memory outlives the task, which is waited for
    let task = unsafe { client.load(&namespace, request) }.unwrap();
    assert_eq!(loaded(&task.wait(PATIENCE).unwrap()), 4);
    assert!((0..4).all(|block| memory.is_right(block)));
    // a piece across two tensors, one that is missing, one too many
    let wrong = |change: &dyn Fn(&mut Vec<TensorAddress>)| {
        let mut request = load_request(&blocks, &target, LoadOrder::BlockMajor);
        request.tensors = halves(target.tensors());
        change(&mut request.tensors);
        // SAFETY: it's refused
        let refused = unsafe { client.load_to_device(&namespace, request, &engine.handle, None) };
        refused.err().map(|error| error.kind())
    };
    assert_eq!(
        wrong(&|pieces| pieces[0].bytes += 1),
        Some(ErrorKind::InvalidInput)
    );
    assert_eq!(
        wrong(&|pieces| pieces[12].bytes -= 1),
        Some(ErrorKind::InvalidInput)
    );
    assert_eq!(
        wrong(&|pieces| pieces.truncate(23)),
        Some(ErrorKind::InvalidInput)
    );
    assert_eq!(
        wrong(&|pieces| pieces.extend_from_within(..4)),
        Some(ErrorKind::InvalidInput)
    );
}

#[test]
fn a_dump_waits_until_the_engine_has_computed() {
    let (rig, engine) = (Rig::new(32), Engine::new());
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..2);
    let memory = engine.put(&mut Memory::empty(&blocks, 0..3));
    let event = engine.host.engine_event().unwrap();
    let request = dump_request(&blocks, &memory);
    // SAFETY: memory and event outlive the task, which is waited for
    let task =
        unsafe { client.dump_from_device(&namespace, request, &engine.handle, Some(event.raw())) }.unwrap();
    assert_eq!(task.wait(MOMENT).unwrap_err().kind(), ErrorKind::TimedOut);
    // the engine computes the blocks only now
    let computed = engine.put(&mut Memory::full(&blocks, 0..3));
    let stream = Stream::create(&engine.device).unwrap();
    let mut batch = CopyBatch::new(Direction::DeviceToDevice);
    let bytes = memory.memory.bytes();
    let whole = |on: &OnDevice| on.memory.address(0, bytes).unwrap();
    // SAFETY: both are held by this function
    unsafe { batch.within_device(whole(&memory), whole(&computed), bytes) }.unwrap();
    stream.copy(batch).unwrap();
    stream.synchronize(PATIENCE).unwrap();
    event.reach();
    assert_eq!(dumped(&task.wait(PATIENCE).unwrap()), 2);
    let report = super::rig::load(&client, &namespace, &blocks, 0..3, LoadOrder::BlockMajor);
    assert_eq!(loaded(&report), 2);
}

#[test]
fn layers_of_a_device_are_put_one_by_one_each_after_its_event() {
    let (rig, engine) = (Rig::new(32), Engine::new());
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..5);
    let dump = client
        .begin_dump(&namespace, blocks.clone(), None, Durability::Tier, None)
        .unwrap();
    let before = engine.device.counts().batch_calls;
    let mut layers = Vec::new();
    for shard in [1, 0, 2] {
        let layer = engine.put(&mut Memory::full(&blocks, shard..shard + 1));
        let event = engine.host.engine_event().unwrap();
        // SAFETY: memory and event outlive the task, which is waited for
        let task =
            unsafe { dump.put_shard_from_device(shard, layer.tensors(), &engine.handle, Some(event.raw())) };
        layers.push((layer, event, task.unwrap()));
    }
    for (_, event, task) in &layers {
        event.reach();
        task.wait(PATIENCE).unwrap();
    }
    assert_eq!(dumped(&dump.task().wait(PATIENCE).unwrap()), 5);
    // three times the memory was filled by the test; windows of three blocks
    assert_eq!(engine.device.counts().batch_calls - before, 3 + 3 * 2);
    let report = super::rig::load(&client, &namespace, &blocks, 0..3, LoadOrder::BlockMajor);
    assert_eq!(loaded(&report), 5);
}

#[test]
fn damaged_blocks_never_reach_the_device() {
    let (rig, engine) = (Rig::cache_alone(32), Engine::new());
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..3);
    super::rig::dump(&client, &namespace, &blocks, Durability::Memory);
    // somebody writes to a slot
    let info = namespace.info();
    let slot = kvstored_core::MemoryTier::pin(&*rig.cache, info, &[hash(1)])
        .pop()
        .flatten()
        .unwrap();
    let offset = slot.offset() + info.layout.shard_offset(2).unwrap();
    slot.arena().write(offset + 5, &[1, 2, 3]).unwrap();
    drop(slot);
    let mut memory = Memory::empty(&blocks, 0..3);
    memory.scribble();
    let target = engine.put(&mut memory);
    let request = load_request(&blocks, &target, LoadOrder::BlockMajor);
    // SAFETY: the memory outlives the task, which is waited for
    let task = unsafe { client.load_to_device(&namespace, request, &engine.handle, None) }.unwrap();
    let report = task.wait(PATIENCE).unwrap();
    assert!(matches!(report.blocks[1], BlockOutcome::Missing), "{report:?}");
    engine.take(&target, &mut memory);
    assert!(memory.is_right(0) && memory.is_right(2));
    let mut damaged = Memory::full(&blocks[1..2], 0..3);
    let expected: usize = damaged.tensors().len();
    let untouched = memory.tensors()[expected..2 * expected].iter().all(|tensor| {
        // SAFETY: the tensor lies in the memory
        let bytes = unsafe { std::slice::from_raw_parts(tensor.address as *const u8, tensor.bytes as usize) };
        bytes.iter().all(|byte| *byte == 0xEE)
    });
    assert!(untouched, "a damaged block was copied to the device");
    assert!(!rig.cache_has(info, hash(1)));
}

#[test]
fn a_load_that_runs_out_of_time_leaves_the_memory_alone() {
    let (rig, engine) = (Rig::new(32), Engine::new());
    let client = rig.embedded(settings());
    let namespace = open(&client);
    let blocks = hashes(0..2);
    super::rig::dump(&client, &namespace, &blocks, Durability::Tier);
    let mut memory = Memory::empty(&blocks, 0..3);
    memory.scribble();
    let target = engine.put(&mut memory);
    let event = engine.host.engine_event().unwrap();
    let request = LoadRequest {
        timeout: Some(Duration::from_millis(100)),
        ..load_request(&blocks, &target, LoadOrder::BlockMajor)
    };
    // SAFETY: memory and event outlive the task, which is waited for
    let task =
        unsafe { client.load_to_device(&namespace, request, &engine.handle, Some(event.raw())) }.unwrap();
    // the engine comes to its event while the stream is being aborted
    assert!(task.wait(Duration::from_millis(400)).is_err());
    event.reach();
    let report = task.wait(PATIENCE).unwrap();
    assert_eq!(loaded(&report), 0, "{report:?}");
    engine.take(&target, &mut memory);
    assert!(memory.is_scribbled());
}
