"""Packaging of lavis_lite: `pip install .` for use, `pip install -e .[dev]` for work on it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The version from the package's source; importing it is not possible before its dependencies are there."""
    source = (ROOT / "lavis_lite" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError("lavis_lite/__init__.py has no line of the form: __version__ = \"1.2.3\"")
    return match.group(1)


def read_readme() -> str:
    """The README, which is the package's long description; links into the repository become plain text."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    return re.sub(r"!?\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


class BuildWithRecipes(build_py):
    """Puts `projects/` into the wheel, where `lavis_lite.config.recipes` finds it."""

    def run(self) -> None:
        """Copy the package, then the recipes; an editable installation uses those of the checkout."""
        super().run()
        if not self.editable_mode:
            home = Path(self.build_lib, "lavis_lite", "recipes", "projects")
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(ROOT / "projects", home, ignore=shutil.ignore_patterns("__pycache__"))


REQUIREMENTS = [
    "torch>=2.6",  # torch.load is safe by default from 2.6 on
    "torchvision>=0.21",  # the partner of torch 2.6; timm needs it
    "transformers>=5.0,<6",
    "huggingface_hub>=1.0",
    "timm>=1.0.22",  # the first whose ViTs can be built on the meta device
    "omegaconf>=2.3",
    "iopath>=0.1.10",
    # 0.6.0 is the last release; it has wheels for these two platforms and no source package
    'decord>=0.6.0; (sys_platform == "linux" and platform_machine == "x86_64") or sys_platform == "win32"',
    "webdataset>=1.0",
    "pycocotools>=2.0.8",
    "pycocoevalcap>=1.2",
    "fairscale>=0.4.13",
    "safetensors>=0.5",
    "tokenizers>=0.22",
    "sentencepiece>=0.2",
    "pillow>=10.3",
    "simplejpeg>=1.8",  # JPEGs are decoded without it too, by Pillow, at about half of the speed
    "numpy>=1.26",
    "filelock>=3.13",
    "PyYAML>=6.0",
    "tqdm>=4.66",
    "packaging>=24",
    "typing_extensions>=4.12",  # defaults of type variables; type checkers alone read it
    "tensorboard>=2.16",
    "matplotlib>=3.8",
]

EXTRAS = {
    "track": ["wandb>=0.19"],
    "lora": ["peft>=0.18"],
    "quant": ["bitsandbytes>=0.46.1", "accelerate>=1.1"],
    "devices": ["accelerate>=1.1"],
    "video": ["av>=14"],
    "parquet": ["pyarrow>=17"],
    "hdf5": ["h5py>=3.11"],
    "demo": ["gradio>=6"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.32"],
    "eval": ["pycocoevalcap>=1.2"],  # among the requirements too; METEOR's and SPICE's messages name this one
}
EXTRAS["all"] = sorted({requirement for group in EXTRAS.values() for requirement in group})
EXTRAS["docs"] = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
EXTRAS["onnx"] = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"]
EXTRAS["dev"] = [
    "av>=14",  # writes the videos that tests read
    "basedpyright>=1.30",  # pyright, with all its parts in wheels
    "bitsandbytes>=0.46.1; sys_platform == 'linux'",  # so that adapters and quantised weights are tested for real
    "h5py>=3.11",
    "fastapi>=0.115",
    "hypothesis>=6.100",
    "ipykernel>=6.29",  # with nbclient: notebooks run in tests
    "nbclient>=0.10",
    "peft>=0.18",
    "pyarrow>=17",
    "mypy>=1.14",
    "pytest>=8.3",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "setuptools>=70.1",  # tests/test_packaging.py builds a wheel without the network
    "types-PyYAML>=6.0",
    "uvicorn>=0.32",
]

setup(
    name="lavis_lite",
    version=read_version(),
    description="Vision-language experiments (BLIP-2, InstructBLIP) assembled from YAML and trained by one loop",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="the lavis_lite authors",
    license="BSD-3-Clause",
    license_files=["LICENSE", "NOTICE"],
    keywords=["vision-language", "multimodal", "BLIP-2", "InstructBLIP", "Q-Former", "LAVIS", "captioning", "VQA"],
    project_urls={"BLIP-2 (paper)": "https://arxiv.org/abs/2301.12597",
                  "InstructBLIP (paper)": "https://arxiv.org/abs/2305.06500"},
    cmdclass={"build_py": BuildWithRecipes},
    python_requires=">=3.10",
    packages=find_packages(include=["lavis_lite", "lavis_lite.*"]),
    package_data={"lavis_lite": ["py.typed", "configs/**/*.yaml", "assets/**/*", "report/page/*"]},
    include_package_data=False,
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["lavis-lite = lavis_lite.cli.main:entry"],
                  "lmms_eval.models": ["lavis_lite = lavis_lite.compat.lmms_eval:manifest"]},
    zip_safe=False,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: BSD License",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Operating System :: OS Independent",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
