mod embedded;
mod layerwise;
mod map_tier;
mod rig;

use crate::{
    BlockOutcome, Client, ClientSettings, DumpRequest, LoadOrder, LoadRequest, NamespaceHandle, TaskReport,
    TensorAddress,
};
