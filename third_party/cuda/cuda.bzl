"""cuda_library: .cu and .cu.cc files compiled by nvcc into objects that cc_library and cc_binary link.

Built under --config=cuda where a toolkit is found; else incompatible, so that //... skips it (docs/cuda.md).
"""

load("@cuda//:toolkit.bzl", "NVCC")

# For target_compatible_with of C++ targets that need CUDA too.
CUDA_ONLY = select({
    "@cuda//:enabled": [],
    "//conditions:default": ["@platforms//:incompatible"],
})

# Machine code for both, which starts at once, and their PTX: later devices compile sm_80's, and tests read it.
# sm_90a has wgmma and setmaxnreg.
SM_80 = "80"
SM_90A = "90a"

_FLAGS = [
    "-std=c++20",
    "-O3",
    "-lineinfo",
    # A product and a sum are two roundings unless a kernel asks for an fma, as in the whole build; so are the
    # exact division and square root that the reference has.
    "--fmad=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--ftz=false",
    "--expt-relaxed-constexpr",
    "--no-compress",
    "--Werror=all-warnings",
    "-Xcompiler=-Wall,-Wextra,-Werror,-fPIC,-ffp-contract=off,-fno-strict-aliasing",
    # ptxas -v: registers, shared memory and spills of each kernel, kept beside the object.
    "-Xptxas=-v",
]

def _cuda_objects_impl(ctx):
    contexts = [dep[CcInfo].compilation_context for dep in ctx.attr.deps]
    headers = depset(ctx.files.hdrs, transitive = [c.headers for c in contexts])
    includes = depset(transitive = [c.includes for c in contexts] + [c.quote_includes for c in contexts] +
                                   [c.system_includes for c in contexts]).to_list()
    objects = []
    reports = []
    for src in ctx.files.srcs:
        stem = ctx.label.name + "/" + src.basename.split(".")[0]
        out = ctx.actions.declare_file(stem + ".pic.o")
        report = ctx.actions.declare_file(stem + ".ptxas.txt")
        args = ctx.actions.args()
        args.add_all(_FLAGS)
        args.add_all(["-gencode=arch=compute_%s,code=[compute_%s,sm_%s]" % (a, a, a) for a in ctx.attr.archs])
        args.add_all(["-I" + i for i in includes])
        args.add_all(["-D" + d for d in ctx.attr.defines])
        args.add_all(["-x", "cu", "-c", src, "-o", out])
        ctx.actions.run_shell(
            outputs = [out, report],
            inputs = depset([src], transitive = [headers]),
            # A failure shows what nvcc said; success keeps it as the report.
            command = "report=$1; shift; \"$@\" >$report 2>&1 || { cat $report >&2; exit 1; }",
            arguments = [report.path, NVCC or "nvcc", args],
            mnemonic = "CudaCompile",
            progress_message = "Compiling %s with nvcc" % src.short_path,
            use_default_shell_env = True,
        )
        objects.append(out)
        reports.append(report)
    return [
        DefaultInfo(files = depset(objects), runfiles = ctx.runfiles(files = objects)),
        OutputGroupInfo(reports = depset(reports)),
    ]

_cuda_objects = rule(
    implementation = _cuda_objects_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu", ".cu.cc"]),
        "hdrs": attr.label_list(allow_files = [".h", ".cuh"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "archs": attr.string_list(),
        "defines": attr.string_list(),
    },
)

def cuda_library(name, srcs, hdrs = [], deps = [], archs = [SM_80, SM_90A], defines = [], **kwargs):
    """.cu files as a library for `deps` of C++ rules.

    hdrs: .h and .cuh files of the package, for the .cu files and for who depends on this. archs: of the machine code.
    NAME.objects with --output_groups=reports gives what ptxas said: registers, shared memory, spills.
    """
    _cuda_objects(
        name = name + ".objects",
        srcs = srcs,
        hdrs = hdrs,
        deps = deps,
        archs = archs,
        defines = defines,
        target_compatible_with = CUDA_ONLY,
    )
    native.filegroup(
        name = name + ".reports",
        srcs = [":" + name + ".objects"],
        output_group = "reports",
    )
    native.cc_library(
        name = name,
        srcs = [":" + name + ".objects"],
        hdrs = hdrs,
        deps = deps + ["@cuda//:runtime"],
        target_compatible_with = CUDA_ONLY,
        **kwargs
    )
