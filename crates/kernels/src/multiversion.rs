//! [`by_level!`]: one plain function compiled for every [`crate::cpu::Level`].
//!
//! Element-wise steps are written once, free of branches and as loops over fixed lanes, which the compiler turns into
//! vector code of each level. The order of operations is in the source, so it is the same at every vector length.

/// Defines `fn name(level, args…)` that runs `body::<FUSED>(args…)` compiled for `level`.
///
/// `body` must be `#[inline(always)]` and generic over `const FUSED: bool`: whether `mul_add` is an instruction.
macro_rules! by_level {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        #[allow(unsafe_code)]
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(level: $crate::cpu::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) {
                    $body::<true>($($arg),*);
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) {
                    $body::<true>($($arg),*);
                }
                let level = level.min($crate::cpu::Level::of_machine());
                if level >= $crate::cpu::Level::Avx512 {
                    // SAFETY: a level is at most that of the machine, which was detected.
                    return unsafe { avx512($($arg),*) };
                }
                if level >= $crate::cpu::Level::Avx2 {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            let _ = level;
            $body::<false>($($arg),*);
        }
    };
}

pub(crate) use by_level;

/// `a * b + c`, in one rounding where that is an instruction.
#[inline(always)]
pub(crate) fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}
