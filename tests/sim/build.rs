//! Some crates look functions of libc up by name while they run: they are to find the simulation's.

fn main() {
    println!("cargo:rustc-link-arg-bins=-rdynamic");
    println!("cargo:rerun-if-changed=build.rs");
}
