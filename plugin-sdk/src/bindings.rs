//! What wit-bindgen makes of the contract. Not for plugins to name: its shapes are those of the wire.

// Generated code lifts and lowers values through linear memory by raw pointers, and documents nothing.
#![allow(unsafe_code, missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

wit_bindgen::generate!({
    path: "wit",
    world: "plugin",
    pub_export_macro: true,
    export_macro_name: "__export_component",
    default_bindings_module: "pinion_plugin::bindings",
});
