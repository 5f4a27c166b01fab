mod device;
mod embedded;
mod hangs;
mod layerwise;
mod map_tier;
mod peer;
mod rig;

use crate::{
    BlockOutcome, Client, ClientSettings, DumpRequest, DumpSession, LoadOrder, LoadRequest, NamespaceHandle,
    TaskReport, TensorAddress,
};
