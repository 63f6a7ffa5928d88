"""PyTorch: eager, compiled, in bfloat16; and the file that it exports."""

from benchmarks import tasks


def _torch(task, channels_last, compiled):
    """Returns the network, its memory format, and its device."""
    import safetensors.torch
    import torch

    from benchmarks import torch_resnext

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(tasks.THREADS)
    row = tasks.network(task)
    net = torch_resnext.Net(row, row.groups, row.classes)
    net.load_state_dict(
        safetensors.torch.load_file(task.folder / "weights.safetensors")
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device, memory_format=layout)
    return torch.compile(net) if compiled else net, layout, device


def _tensor(images, layout):
    import torch

    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=layout)


def infer(task, channels_last=True, bfloat16=False, compiled=False):
    """PyTorch's inference."""
    import torch

    net, layout, device = _torch(task, channels_last, compiled)
    net.eval()
    images = _tensor(tasks.images(task), layout)

    @torch.inference_mode()
    def run():
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            return net(images.to(device)).float().cpu().numpy()

    return run


def train(task, channels_last=True, bfloat16=False, compiled=False):
    """PyTorch's training; gives the mean of the losses."""
    import torch

    net, layout, device = _torch(task, channels_last, compiled)
    net.train()
    optimizer = torch.optim.SGD(
        net.parameters(), tasks.LEARNING_RATE, momentum=0.9
    )
    criterion = torch.nn.CrossEntropyLoss()
    images, labels = tasks.steps(task)
    batches = list(
        zip(
            _tensor(images, layout).split(task.batch),
            torch.from_numpy(labels).split(task.batch),
            strict=True,
        )
    )

    def step(x, y):
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = criterion(net(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        return loss.detach()

    def run():
        losses = torch.stack([step(*batch) for batch in batches])
        return losses.mean(0, keepdim=True).cpu().numpy()

    return run


def export(task, path):
    """Writes the network as PyTorch's own ONNX file, of any batch."""
    import torch

    net, *_ = _torch(task, channels_last=False, compiled=False)
    images = _tensor(tasks.images(task, 2), torch.contiguous_format)
    torch.onnx.export(
        net.eval(),
        (images,),
        path,
        input_names=["images"],
        output_names=["outputs"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
