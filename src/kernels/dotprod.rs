use super::portable::{Bits, stamp_portable};
use super::{MatmulTask, Table};
stamp_portable!("neon,dotprod", Bits);
pub(crate) static TABLE: Table = Table { matmul, quantize, rms_norm, add, silu_mul, l2_norm, attend };
unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe { (super::scalar::TABLE.matmul)(task) }
}
