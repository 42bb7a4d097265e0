//! Tells the linker what the target's name doesn't say.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_CFG_TARGET_ARCH").is_some_and(|arch| arch == "bpf") {
        // Headers start at odd multiples of two bytes in a frame. Every architecture that XDP runs
        // on loads words from such addresses; without this, LLVM loads them byte by byte.
        println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
        // With its default, the linker turns every small memset into a call of a loop over bytes.
        println!("cargo:rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    }
}
