# The tutorials' commands on images, in their order.
## tutorials
docker images --format '{{.Repository}}:{{.Tag}}' | sort
docker images -q
docker images -qa --no-trunc
docker image ls debian
docker image ls debian:nope
docker images -f dangling=true
docker images --digests --format '{{.Digest}} {{.Repository}}' | sort
docker images --format '{{.ID}}: {{.Repository}}' busybox
docker images --tree busybox 2>&1 | head -n 1
docker tag debian mine/debian:v1
docker tag debian nope/UPPER
docker tag nope x
docker history debian
docker history --no-trunc -q debian
docker inspect --type image --format '{{.Os}} {{.Architecture}} {{.Config.Cmd}} {{.RepoTags}}' mine/debian:v1
docker image inspect nope
docker save -o saved.tar mine/debian:v1 debian
docker rmi mine/debian:v1
docker load -i saved.tar | sort
docker load -q < saved.tar | sort
docker load < /dev/null
docker save -o saved.tar nope
docker rmi mine/debian:v1
docker rmi nope
docker rmi debian nope mine/debian:v1
docker load -q -i saved.tar | sort
docker tag busybox debian
docker run --name user debian true
docker rmi $(docker images -q busybox | head -n 1)
docker image rm sha256:0000000000000000000000000000000000000000000000000000000000000000
docker rm user
docker image prune -f
docker search --limit 200 foo
docker logout 127.0.0.1:5002

## a registry
docker tag busybox 127.0.0.1:5000/mine/cowsay
docker push 127.0.0.1:5000/mine/cowsay | sed 's/^[0-9a-f]*: Pushing.*//'
docker push 127.0.0.1:5000/mine/cowsay:latest
docker tag busybox 127.0.0.1:5000/other/cowsay:2
docker push 127.0.0.1:5000/other/cowsay:2
docker tag busybox 127.0.0.1:5000/other/cowsay:3
docker push -a 127.0.0.1:5000/other/cowsay
docker push -q 127.0.0.1:5000/other/cowsay:3
docker push 127.0.0.1:5000/other/cowsay:nope
docker push 127.0.0.1:5000/nope
docker inspect --format '{{.RepoTags}} {{.RepoDigests}}' 127.0.0.1:5000/other/cowsay:3
docker images --digests --format '{{.Repository}}@{{.Digest}}' 127.0.0.1:5000/other/cowsay
docker rmi 127.0.0.1:5000/other/cowsay:2
docker rmi 127.0.0.1:5000/other/cowsay:3
docker pull 127.0.0.1:5000/other/cowsay:2
docker pull 127.0.0.1:5000/other/cowsay:2
docker pull -q 127.0.0.1:5000/other/cowsay:3
docker pull -a 127.0.0.1:5000/other/cowsay
docker pull 127.0.0.1:5000/other/cowsay
docker pull 127.0.0.1:5000/nope
docker pull 127.0.0.1:5000/other/cowsay@sha256:0000000000000000000000000000000000000000000000000000000000000000
docker pull $(docker inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' 127.0.0.1:5000/other/cowsay:2 | grep other)
docker pull --platform linux/amd64 127.0.0.1:5000/other/cowsay:2
docker run --rm --pull always 127.0.0.1:5000/other/cowsay:2 echo pulled
docker tag busybox 127.0.0.1:5002/mine/cowsay
docker push 127.0.0.1:5002/mine/cowsay
docker pull 127.0.0.1:5002/mine/cowsay
docker login -u u -p x 127.0.0.1:5002
docker login -u u -p p 127.0.0.1:5002 2>&1 | grep Succeeded
docker push 127.0.0.1:5002/mine/cowsay
docker pull 127.0.0.1:5002/mine/cowsay
docker logout 127.0.0.1:5002
docker push 127.0.0.1:5002/mine/cowsay
docker rmi 127.0.0.1:5000/mine/cowsay 127.0.0.1:5002/mine/cowsay 127.0.0.1:5000/other/cowsay:2 127.0.0.1:5000/other/cowsay:3
docker images --format '{{.Repository}}:{{.Tag}}' | sort
