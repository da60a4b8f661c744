"""The views of a published recipe in a loop of your own:  python examples/pipeline_in_your_own_loop.py [PHOTOS]"""

import sys

import timm
import torch

import saccade
from saccade.losses.registry import find_method

images, _ = saccade.open_data(sys.argv[1] if len(sys.argv) > 1 else "textures")
recipe = find_method("simclr").recipe("cifar10", None)
model = timm.create_model("test_resnet", num_classes=0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

with saccade.build_pipeline(images, recipe.views, batch_size=32) as pipeline:
    print(pipeline, "by", pipeline.choice)
    model.to(pipeline.device)
    for step, batch in zip(range(10), pipeline, strict=False):
        one, two = (torch.nn.functional.normalize(model(view), dim=1) for view in batch.views.values())
        loss = torch.nn.functional.cross_entropy(one @ two.T / 0.2, torch.arange(len(one), device=one.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}   {batch}")
